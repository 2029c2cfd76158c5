"""``ft preview``: the rows as they would be trained, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftcore.cli.common import echo_json, file_and_overrides
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from ftcore.api.dataset_spec import DatasetSpec
    from ftcore.api.plan import Plan
    from ftcore.api.samples import Place
    from ftcore.data.chat_template.renderer import Renderer
    from ftcore.data.preprocessing.prepare import Prepared
    from ftcore.data.row_stats import RowCounts


@click.command(name="preview")
@file_and_overrides
@click.option(
    "-n",
    "--rows",
    default=5,
    show_default=True,
    metavar="N",
    type=click.IntRange(0),
    help="Rows per dataset, or packs, to show; 0 for all.",
)
@click.option("--stats", is_flag=True, help="Show only the counts, over all rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row: tokens, labels, reasons.")
def command(file: Path, overrides: tuple[str, ...], rows: int, stats: bool, as_json: bool) -> None:
    """Shows the rows as they would be trained: which tokens are in the loss, and why others are not.

    Only the tokenizer is loaded, not the model.
    """
    from ftcore.config.planner import make_plan
    from ftcore.models import hub_access

    show(hub_access.planned(lambda: make_plan(file, overrides)), rows=rows, stats=stats, as_json=as_json)


def show(plan: Plan, *, rows: int, stats: bool, as_json: bool) -> None:
    """Prints findings of the template check, the rows, then the counts.

    Raises:
        UsageError: for bad rows among those read, unless the plan skips them; for findings of the template check, with
            ``template_check: error``.
    """
    from ftcore.cli.preview_packs import show_packs
    from ftcore.cli.preview_rows import Terminal
    from ftcore.data.datasets.packing import packs
    from ftcore.data.preprocessing.documents import renderer_of
    from ftcore.data.preprocessing.questions import predicts
    from ftcore.data.preprocessing.template_check import check_template
    from ftcore.data.row_stats import RowCounts, RowStats, bad_rows

    tokenizer = plan.plugins.hook.ft_load_tokenizer(plan=plan)
    if tokenizer is None:
        raise UsageError(Problem("no plugin can load this model's tokenizer", plan.file))
    check_template(plan, tokenizer)
    if packs(plan) and not stats and not plan.data.streaming:
        show_packs(plan, tokenizer, rows, as_json=as_json)
        return
    renderer = renderer_of(plan, tokenizer)
    train = [RowCounts(name=spec.name) for spec in plan.datasets]
    held_out = [RowCounts(name=spec.name) for spec in plan.eval_datasets]
    pairs = zip((*plan.datasets, *plan.eval_datasets), (*train, *held_out), strict=True)
    show_one = _show_json if as_json else Terminal().show
    for number, (spec, counts) in enumerate(pairs):
        questions = predicts(plan) and number >= len(plan.datasets)
        for place, row, times in _rows(plan, renderer, spec, counts, 0 if stats else rows, questions=questions):
            if not stats:
                show_one(place, row, times)
    accounting = RowStats(tuple(train), tuple(held_out))
    if as_json and stats:
        echo_json(accounting.as_dict())
    elif not as_json:
        click.echo(accounting.summary())
    if bad := bad_rows([*train, *held_out], plan.data):
        raise bad


def _rows(
    plan: Plan, renderer: Renderer, spec: DatasetSpec, counts: RowCounts, most: int, *, questions: bool
) -> Iterator[tuple[Place, Any, int]]:
    """The rows, each with the number of times it is trained."""
    from ftcore.data.datasets.packing import uncut
    from ftcore.data.formats.detection import read_samples, row_problem
    from ftcore.data.pipeline.row_sampling import counted, sampling_of
    from ftcore.data.preprocessing.prepare import prepare
    from ftcore.errors import RowError

    sampling = sampling_of(spec, plan)
    counts.of = sampling.of if sampling else 0
    read, rows = tee(islice(counted(read_samples(spec, plan, sampling, questions=questions)), most or None))
    prepared = prepare(((place, sample) for place, sample, _ in read), renderer, uncut(plan), questions=questions)
    for (place, row), (*_, times) in zip(prepared, rows, strict=True):
        if isinstance(row, RowError):
            counts.add_bad(row_problem(place, row), times)
        else:
            counts.add(place, row, times)
        yield place, row, times


def _show_json(place: Place, row: Any, times: int) -> None:
    import json

    drawn = {"times": times} if times > 1 else {}
    click.echo(json.dumps(as_dict(place, row) | drawn, ensure_ascii=False))


def as_dict(place: Place, row: Any) -> dict[str, Any]:
    """A row for ``--json``: kept tokens, labels (-100: not trained), reasons; ``truncated`` counts the tokens cut off.

    A preference has these twice, under ``chosen`` and ``rejected``; ``shared`` is the length of the common prompt.
    Feedback also has ``good``.
    """
    from ftcore.data.formats.detection import row_problem
    from ftcore.data.preprocessing.prepare import PreparedFeedback, PreparedPair
    from ftcore.errors import RowError

    source = {"source": str(place)}
    untrainable = {
        "untrainable": getattr(row, "untrainable", "") or None,
        "without_thought": getattr(row, "thoughtless", 0),
    }
    if isinstance(row, RowError):
        return source | {"error": str(row_problem(place, row))}
    if isinstance(row, PreparedPair):
        sides = {"chosen": _tokens(row.chosen), "rejected": _tokens(row.rejected)}
        return source | sides | {"shared": row.prompt} | untrainable
    if isinstance(row, PreparedFeedback):
        return source | _tokens(row.chat) | {"good": row.good} | untrainable
    return source | _tokens(row) | untrainable


def _tokens(row: Prepared) -> dict[str, Any]:
    from ftcore.data.tokenization.loss_reasons import Reason

    ids = row.labelled.encoded.ids[: row.kept].tolist()
    weights = row.labelled.weights[: row.kept].tolist()
    return {
        "text": row.rendered.text,
        "input_ids": ids,
        "labels": [token if weight > 0 else -100 for token, weight in zip(ids, weights, strict=True)],
        "reasons": [Reason(reason).label for reason in row.labelled.reasons[: row.kept].tolist()],
        "truncated": row.tokens - row.kept,
    }
