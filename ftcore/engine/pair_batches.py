"""Batches of pairs of answers to one prompt, which may be in them once for both (see `ftcore.engine.sharing`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ftcore.engine.collate import Batch, collate
from ftcore.engine.sharing import Shares, Wish, sharing

SIDES = ("chosen", "rejected")


def answered(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Prompt and answer of a row as one sequence for `collate`; the prompt is no target.

    Args:
        row: ``prompt_ids``, and ``<name>_ids`` and ``<name>_weights`` of the answer.
        name: such as ``chosen``.
    """
    prompt, weights = row["prompt_ids"], row[f"{name}_weights"]
    return {
        "input_ids": np.concatenate([prompt, row[f"{name}_ids"]]),
        "weights": np.concatenate([np.zeros(len(prompt), np.float32), weights]),
        "index": row["index"],
    }


def collate_pairs(rows: Sequence[Mapping[str, Any]], shares: Shares | None = None) -> Batch:
    """Rows of a `PairDataset` as one batch of 2B sequences: all chosen ones, then all rejected ones.

    Args:
        rows: the pairs.
        shares: for which of them the rejected sequence goes on from the chosen one's prompt; None for none.

    Returns:
        What `collate` returns, and ``pair_weights`` float64 ``[B]``, 0 for fillers; ``index`` has B numbers. Where rows
        have a ``reference`` ``[2, 2]``, all of them as float64 ``[2B, 2]`` (see `PairTrainer`).
    """
    chosen, rejected = ([answered(row, name) for row in rows] for name in SIDES)
    for number, row in enumerate(rows):
        prompt, answer = len(row["prompt_ids"]), len(row["rejected_ids"])
        if shares is not None and prompt > 1 and shares(prompt, answer):
            rejected[number] = _after(rejected[number], number, prompt - 1)
    batch = collate([*chosen, *rejected])
    batch["index"] = [int(row["index"]) for row in rows]
    batch["pair_weights"] = torch.tensor([float(not row.get("filler")) for row in rows], dtype=torch.float64)
    if "reference" in rows[0]:
        both = np.stack([row["reference"] for row in rows])
        batch["reference"] = torch.from_numpy(both.swapaxes(0, 1).reshape(-1, 2))
    return batch


def _after(row: Mapping[str, Any], sequence: int, tokens: int) -> dict[str, Any]:
    """The row without its first tokens, which are those of a sequence of the batch."""
    return {
        "input_ids": row["input_ids"][tokens:],
        "weights": row["weights"][tokens:],
        "index": row["index"],
        "after": (sequence, tokens),
    }


@dataclass(frozen=True, slots=True)
class PairCollator:
    """`collate_pairs` with prompts shared.

    Args:
        shares: by which pairs are decided about; None where no prompt is shared.
    """

    shares: Shares | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """See `collate_pairs`."""
        return collate_pairs(rows, self.shares)


def share_prompts(trainer: Any, wish: Wish, scorer: Any = None) -> PairCollator:
    """What makes a trainer's batches of pairs, for its own scorer or for another one."""
    scorer = trainer.scorer if scorer is None else scorer
    with trainer.comparing(scorer):
        return PairCollator(sharing(scorer, wish, trainer.noise is not None))


def probe_rows(vocabulary: int) -> list[dict[str, Any]]:
    """Two pairs, every token of whose answers is labelled."""
    rows = []
    for number, lengths in enumerate(((5, 4, 3), (3, 2, 6))):
        prompt, chosen, rejected = (
            ((np.arange(length) * 37 + 11 * length + 5 * number + place) % vocabulary).astype(np.int32)
            for place, length in enumerate(lengths)
        )
        row: dict[str, Any] = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "index": number}
        rows.append(row | {f"{name}_weights": np.ones(len(row[f"{name}_ids"]), np.float32) for name in SIDES})
    return rows
