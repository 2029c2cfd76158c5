"""Batches of pairs of answers to one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ftcore.training.batching.collators import Batch, collate

SIDES = ("chosen", "rejected")


def answered(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Prompt and answer of a row as one sequence for `collate`; the prompt has no labels.

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


def collate_pairs(rows: Sequence[Mapping[str, Any]]) -> Batch:
    """Rows of a `PairDataset` as one batch of 2B sequences: first all chosen ones, then all rejected ones.

    Args:
        rows: the pairs.

    Returns:
        What `collate` returns, and ``pair_weights`` float64 ``[B]``, 0 for fillers; ``index`` holds B numbers. If rows
        have a ``reference`` ``[2, 2]``, the batch has it as float64 ``[2B, 2]`` (see stage dpo).
    """
    chosen, rejected = ([answered(row, name) for row in rows] for name in SIDES)
    batch = collate([*chosen, *rejected])
    batch["index"] = [int(row["index"]) for row in rows]
    batch["pair_weights"] = torch.tensor([float(not row.get("filler")) for row in rows], dtype=torch.float64)
    if "reference" in rows[0]:
        both = np.stack([row["reference"] for row in rows])
        batch["reference"] = torch.from_numpy(both.swapaxes(0, 1).reshape(-1, 2))
    return batch
