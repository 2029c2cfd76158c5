"""The rows of a rollout of stage ppo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ftcore.training.batching.collators import Batch, collate

COLUMNS = ("old_logps", "old_values", "advantages", "returns")
"""Columns of a rollout's row, one value per token of the response, float64 ``[R]``."""


def collate_responses(rows: Sequence[Mapping[str, Any]]) -> Batch:
    """Rows of a rollout as one batch: what `collate` returns, and `COLUMNS` ``[T]`` at its ``positions``."""
    return {**collate(rows), **{name: torch.cat([row[name] for row in rows]) for name in COLUMNS if name in rows[0]}}
