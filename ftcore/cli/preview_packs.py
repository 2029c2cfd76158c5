"""Packs as they are trained: row after row, with a line between them."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from ftcore.cli.preview_rows import CONTROLS

if TYPE_CHECKING:
    from ftcore.api.plan import Plan
    from ftcore.data.datasets.packing import PackedDataset


def show_packs(plan: Plan, tokenizer: Any, most: int, *, as_json: bool) -> None:
    """Prints the first packs of the training data. All data is tokenised for this, and cached for the run.

    Args:
        plan: a plan with packing.
        tokenizer: the plan's tokenizer.
        most: maximum number of packs; 0 for all.
        as_json: whether to print one JSON object per pack.

    Raises:
        UsageError: see `ftcore.data.pipeline.loading`.
    """
    import json

    from ftcore.data.pipeline.loading import chat_datasets

    data = chat_datasets(plan, tokenizer)
    train: Any = data.train
    if train is not None:
        for number in range(min(most or len(train), len(train))):
            found = as_dict(train, number)
            click.echo(json.dumps(found, ensure_ascii=False) if as_json else bordered(found, tokenizer))
    if not as_json:
        click.echo(data.accounting.summary())


def as_dict(packs: PackedDataset, number: int) -> dict[str, Any]:
    """A pack for ``--json``: for each piece of a row its source, its start in the row, ids and labels."""
    segments, pieces = packs.segments, []
    for piece in range(int(segments.packs[number]), int(segments.packs[number + 1])):
        row, start, end = (int(array[piece]) for array in segments[:3])
        item = packs.dataset[row]
        ids, weights = item["input_ids"][start:end].tolist(), item["weights"][start:end].tolist()
        labels = [token if weight > 0 else -100 for token, weight in zip(ids, weights, strict=True)]
        # the first token of a piece is not predicted
        pieces.append(
            {"source": str(packs.places[row]), "start": start, "input_ids": ids, "labels": [-100, *labels[1:]]}
        )
    return {"pack": number + 1, "tokens": sum(len(piece["input_ids"]) for piece in pieces), "rows": pieces}


def bordered(pack: dict[str, Any], tokenizer: Any) -> str:
    """A pack as text: ``⟦trained⟧`` tokens, and a line at the start of each row."""
    lines = [f"━━ pack {pack['pack']}: {pack['tokens']:,} tokens, {len(pack['rows'])} rows"]
    for piece in pack["rows"]:
        offset = f" from token {piece['start'] + 1:,} on" if piece["start"] else ""
        lines.append(f"── {piece['source']}{offset}  {len(piece['input_ids']):,} tokens")
        parts = []
        pairs = zip(piece["input_ids"], piece["labels"], strict=True)
        for trained, run in groupby(pairs, key=lambda pair: pair[1] >= 0):
            text = tokenizer.decode([token for token, _ in run]).translate(CONTROLS)
            parts.append(f"⟦{text}⟧" if trained else text)
        lines.append("".join(parts).rstrip())
    return "\n".join(lines)
