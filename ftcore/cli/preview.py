"""``ft preview``: what would be trained, row by row, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftcore.cli.common import echo_json, file_and_overrides
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from ftcore.data.accounting import Counts
    from ftcore.data.preparing import Item, Prepared
    from ftcore.data.rendering import Renderer
    from ftcore.data.sources import DatasetSpec
    from ftcore.plan import Plan
    from ftcore.samples import Place

_STYLES = {
    "assistant": "bold green",
    "end-of-turn": "bold magenta",
    "user": "blue",
    "system": "cyan",
    "tool": "yellow",
    "history": "dim green",
    "template": "dim",
    "truncated": "red strike",
}
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
"""Control characters are shown as pictures: a data file must not steer the terminal."""


@click.command(name="preview")
@file_and_overrides
@click.option(
    "-n",
    "--rows",
    default=5,
    show_default=True,
    metavar="N",
    type=click.IntRange(0),
    help="Rows of each dataset to show; 0 for all.",
)
@click.option("--stats", is_flag=True, help="Only the counts, over all rows.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row: tokens, labels, reasons.")
def command(file: Path, overrides: tuple[str, ...], rows: int, stats: bool, as_json: bool) -> None:
    """What would be trained: each row's text with the tokens that are learnt, and why others are not.

    No model is loaded, only its tokenizer.
    """
    from ftcore.planning import make_plan

    show(make_plan(file, overrides), rows=rows, stats=stats, as_json=as_json)


def show(plan: Plan, *, rows: int, stats: bool, as_json: bool) -> None:
    """Prints the rows, then the counts.

    Raises:
        UsageError: the bad rows among those looked at, unless the plan skips them.
    """
    from ftcore.data.accounting import Accounting, Counts, bad_rows
    from ftcore.data.rendering import Renderer

    tokenizer = plan.plugins.hook.ft_load_tokenizer(plan=plan)
    if tokenizer is None:
        raise UsageError(Problem("no plugin loads this model's tokenizer", plan.file))
    renderer = Renderer.from_plan(plan, tokenizer)
    train = [Counts(name=spec.name) for spec in plan.datasets]
    held_out = [Counts(name=spec.name) for spec in plan.eval_datasets]
    pairs = zip((*plan.datasets, *plan.eval_datasets), (*train, *held_out), strict=True)
    show_one = _show_json if as_json else _Terminal().show
    for spec, counts in pairs:
        for place, row in _rows(plan, renderer, spec, counts, 0 if stats else rows):
            if not stats:
                show_one(place, row)
    accounting = Accounting(tuple(train), tuple(held_out))
    if as_json and stats:
        echo_json(accounting.as_dict())
    elif not as_json:
        click.echo(accounting.summary())
    bad = bad_rows([*train, *held_out]) if plan.data.on_bad_row == "fail" else None
    if bad:
        raise bad


def _rows(plan: Plan, renderer: Renderer, spec: DatasetSpec, counts: Counts, most: int) -> Iterator[Item]:
    from ftcore.data.formats import read_samples, row_problem
    from ftcore.data.preparing import Prepared, prepare

    samples = islice(read_samples(spec, plan), most or None)
    for place, row in prepare(samples, renderer, plan.data):
        if isinstance(row, Prepared):
            counts.add(place, row)
        else:
            counts.add_bad(row_problem(place, row))
        yield place, row


def _show_json(place: Place, row: Any) -> None:
    import json

    click.echo(json.dumps(as_dict(place, row), ensure_ascii=False))


def as_dict(place: Place, row: Any) -> dict[str, Any]:
    """A row for ``--json``: kept tokens, labels (-100: not trained), reasons; ``truncated`` counts the tokens cut."""
    from ftcore.data.formats import row_problem
    from ftcore.data.preparing import Prepared
    from ftcore.data.reasons import Reason

    if not isinstance(row, Prepared):
        return {"source": str(place), "error": str(row_problem(place, row))}
    ids = row.labelled.encoded.ids[: row.kept].tolist()
    weights = row.labelled.weights[: row.kept].tolist()
    return {
        "source": str(place),
        "text": row.rendered.text,
        "input_ids": ids,
        "labels": [token if weight > 0 else -100 for token, weight in zip(ids, weights, strict=True)],
        "reasons": [Reason(reason).label for reason in row.labelled.reasons[: row.kept].tolist()],
        "truncated": len(row.labelled.weights) - row.kept,
        "untrainable": row.untrainable or None,
    }


class _Terminal:
    """Rows for people: in colours, or with brackets where there are none."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console: Console = Console(highlight=False, soft_wrap=True)
        self.coloured = self.console.is_terminal and not self.console.no_color
        self._told = False

    def show(self, place: Place, row: Any) -> None:
        from rich.text import Text

        from ftcore.data.formats import row_problem
        from ftcore.data.preparing import Prepared

        if not self._told:
            self.console.print(self._legend())
            self._told = True
        if not isinstance(row, Prepared):
            self.console.print(Text(str(row_problem(place, row)), style="red"))
            return
        why = f"  not trained: {row.untrainable}" if row.untrainable else ""
        self.console.print(Text(f"── {place}  {_sizes(row)}{why}", style="bold"))
        self.console.print(self._coloured(row) if self.coloured else Text(bracketed(row).rstrip()))

    def _coloured(self, row: Prepared) -> Any:
        from rich.text import Text

        text = Text()
        for piece, reason, trained in pieces(row):
            text.append(piece.translate(_CONTROLS), style=_STYLES[reason] + (" underline" if trained else ""))
        text.rstrip()
        return text

    def _legend(self) -> Any:
        from rich.text import Text

        if not self.coloured:
            return Text("⟦ ⟧ is trained, ⟨ ⟩ is beyond cutoff_len")
        legend = Text("trained: underlined  ")
        for reason, style in _STYLES.items():
            legend.append(reason, style=style).append(" ")
        return legend


def bracketed(row: Prepared) -> str:
    """The row's text for where there are no colours: ``⟦trained⟧``, ``⟨beyond cutoff_len⟩``."""
    parts = []
    for (trained, cut), run in groupby(pieces(row), key=lambda piece: (piece[2], piece[1] == "truncated")):
        text = "".join(piece for piece, _, _ in run).translate(_CONTROLS)
        parts.append(f"⟨{text}⟩" if cut else f"⟦{text}⟧" if trained else text)
    return "".join(parts)


def _sizes(row: Prepared) -> str:
    trained = int((row.labelled.weights[1 : row.kept] > 0).sum())
    cut = len(row.labelled.weights) - row.kept
    return f"{row.kept} tokens, {trained} trained" + (f", {cut} cut off" if cut else "")


def pieces(row: Prepared) -> Iterator[tuple[str, str, bool]]:
    """The text in runs of one reason: text, reason, whether it is trained."""
    import numpy as np

    from ftcore.data.reasons import Reason

    labelled, length = row.labelled, len(row.rendered.text)
    codes = np.full(length, int(Reason.TEMPLATE) * 2, dtype=np.int32)
    of_token = labelled.reasons.astype(np.int32) * 2 + (labelled.weights > 0)
    of_token[row.kept :] = int(Reason.TRUNCATED) * 2
    encoded = labelled.encoded
    for start, end, code in zip(encoded.starts.tolist(), encoded.ends.tolist(), of_token.tolist(), strict=True):
        codes[start:end] = code
    bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), length]
    for start, end in pairwise(bounds):
        code = int(codes[start])
        yield row.rendered.text[start:end], Reason(code // 2).label, bool(code % 2)
