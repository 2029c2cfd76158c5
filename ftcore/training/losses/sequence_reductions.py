"""Sums over the sequences of a batch, for losses on whole answers."""

from __future__ import annotations

import torch

from ftcore.training.batching.collators import Batch


def counts(batch: Batch) -> list[int]:
    """How many labels each sequence has, ``[S]``."""
    starts = batch["cu_seqlens"].long()
    sequence = torch.searchsorted(starts, batch["positions"], right=True) - 1
    return torch.bincount(sequence, minlength=len(starts) - 1).tolist()


def weights(batch: Batch) -> torch.Tensor:
    """The labels' weights, ``[T]``."""
    return batch["weights"][0, batch["positions"]]


def lengths(batch: Batch) -> torch.Tensor:
    """Sum of the labels' weights of each sequence, float64 ``[S]``: the number of its trained tokens."""
    return sums(torch.ones_like(weights(batch)), batch)


def sums(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Weighted sum of each sequence's values, in float64.

    Args:
        values: one for each of the batch's labels, ``[T]``.

    Returns:
        ``[S]``. Sums are computed per sequence, not scattered, so their order is fixed on a GPU too.
    """
    parts = (values.double() * weights(batch)).split(counts(batch))
    return torch.stack([part.sum() for part in parts])


def split_sums(values: torch.Tensor, batch: Batch, first: list[int]) -> torch.Tensor:
    """The same for each sequence's first labels and for the rest.

    Args:
        values: ``[T]``.
        first: number of first labels of each sequence, ``[S]``.

    Returns:
        float64 ``[S, 2]``.
    """
    parts = (values.double() * weights(batch)).split(counts(batch))
    return torch.stack(
        [torch.stack([part[:count].sum(), part[count:].sum()]) for part, count in zip(parts, first, strict=True)]
    )
