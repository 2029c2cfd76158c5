"""Repeats, mixes and packs tokenised rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ftcore.data.datasets.mixing import mixed_rows
from ftcore.data.datasets.packing import PackedDataset, packs, splits
from ftcore.data.datasets.preference_dataset import AnswerDataset
from ftcore.data.datasets.token_dataset import TokenDataset
from ftcore.data.storage.arrays import Ints
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


def repeat(plan: Plan, training: Any, rows: Ints, sizes: Sequence[int]) -> tuple[Any, list[int]]:
    """The training rows, repeated as ``num_samples`` says, and the number of rows of each dataset.

    Args:
        plan: the run's.
        training: the rows of all datasets, concatenated, each row once.
        rows: indices of the rows to train on, sorted.
        sizes: number of rows of each dataset.
    """
    times, random = training.times[rows], np.random.default_rng(plan.training.seed)
    bounds = np.searchsorted(rows, np.concatenate([[0], np.cumsum(sizes)]))
    parts = [np.repeat(rows[start:end], times[start:end]) for start, end in pairwise(bounds)]
    # without shuffling, repeats of a row would otherwise follow each other
    parts = [
        random.permutation(part) if spec.num_samples else part for spec, part in zip(plan.datasets, parts, strict=True)
    ]
    order, lengths = np.concatenate(parts), [len(part) for part in parts]
    as_it_is = len(order) == len(training) and bool((order == np.arange(len(order))).all())
    return training if as_it_is else training.take(order), lengths


def repeat_all(dataset: Any) -> Any:
    """All rows, repeated as ``num_samples`` says, in their order."""
    if dataset is None or (dataset.times == 1).all():
        return dataset
    return dataset.take(np.repeat(np.arange(len(dataset)), dataset.times))


def mix(plan: Plan, training: Any, lengths: Sequence[int]) -> tuple[Any, list[str]]:
    """The training rows in the order of ``mix_strategy``, and a line for the terminal.

    Args:
        plan: the run's.
        training: the training rows of all datasets, concatenated.
        lengths: number of rows of each dataset.

    Raises:
        UsageError: ``val_size`` took all rows of a dataset.
    """
    strategy = plan.data.mix_strategy
    if strategy == "concat" or len(lengths) < 2:
        return training, []
    if 0 in lengths:
        name = plan.datasets[lengths.index(0)].name
        raise UsageError(Problem(f"val_size takes all rows of dataset {name!r}", hint="write a smaller val_size"))
    chances = plan.data.interleave_probs
    order = mixed_rows(lengths, strategy, chances, plan.training.seed)
    taken = np.bincount(np.searchsorted(np.cumsum(lengths), order, side="right"), minlength=len(lengths)).tolist()
    listed = ", ".join(f"{count:,} of {spec.name}" for count, spec in zip(taken, plan.datasets, strict=True))
    return training.take(order), [f"{strategy}: {len(order):,} rows, {listed}"]


def pack(plan: Plan, dataset: TokenDataset | AnswerDataset | None, label: str = "") -> tuple[Any, list[str]]:
    """The dataset, packed if the plan packs, and a line for the terminal."""
    if dataset is None or isinstance(dataset, AnswerDataset) or not packs(plan):
        return dataset, []
    if dataset.has_images:
        message = "packing is true, and rows with images cannot be packed"
        raise UsageError(Problem(message, plan.file, "write packing: false"))
    size = plan.data.cutoff_len
    packed = PackedDataset.of(dataset, size, split=splits(plan))
    full = packed.lengths.sum() / (len(packed) * size)
    return packed, [f"{label}{len(dataset):,} rows in {len(packed):,} packs of {size:,} tokens, {full:.1%} full"]
