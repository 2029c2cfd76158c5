"""Implements ``num_samples`` of a dataset's description: a random subset of the rows, or all rows several times.

LLaMA-Factory takes the first ``num_samples`` rows of a random permutation, and draws missing rows with replacement.
Here further permutations supply them, so that the repeat counts of two rows differ by at most one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from ftcore.api.dataset_spec import DatasetSpec
from ftcore.api.samples import Place
from ftcore.data.sources.readers import read_dataset

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """The repeat count of each row of a dataset.

    Args:
        times: int64 ``[R]``, in the order of the rows; 0 leaves a row out.
    """

    times: npt.NDArray[np.int64]

    @property
    def of(self) -> int:
        """Rows of the dataset."""
        return len(self.times)

    def rows(self, rows: Iterable[tuple[Place, T]]) -> Iterator[tuple[Place, T]]:
        """The rows of the dataset, each repeated directly."""
        for (place, row), times in zip(rows, self.times.tolist(), strict=False):
            for _ in range(times):
                yield place, row


def drawn_rows(count: int, num_samples: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of the drawn rows, in the order of the draw.

    Args:
        count: rows of the dataset.
        num_samples: rows to draw; above ``count``, every row is drawn before any is drawn again.
        seed: of the draw.
    """
    if not count:
        return np.zeros(0, np.int64)
    random = np.random.default_rng(seed)
    passes = [random.permutation(count) for _ in range(-(-num_samples // count))]
    return np.concatenate(passes)[:num_samples]


def sampling_of(spec: DatasetSpec, plan: Plan) -> Sampling | None:
    """The sampling of the dataset; None without ``num_samples``. All rows are read once to count them.

    ``max_samples`` keeps the first of the drawn rows.

    Raises:
        UsageError: see `ftcore.data.sources.readers.read_dataset`.
    """
    if spec.num_samples is None:
        return None
    count = sum(1 for _ in read_dataset(spec, streaming=plan.data.streaming, max_row_bytes=plan.data.max_row_bytes))
    drawn = drawn_rows(count, spec.num_samples, plan.training.seed)[: plan.data.max_samples]
    return Sampling(np.bincount(drawn, minlength=count).astype(np.int64))


def counted(rows: Iterable[tuple[Place, T]]) -> Iterator[tuple[Place, T, int]]:
    """Each row once, with its repeat count; repeats must be adjacent."""
    for place, group in groupby(rows, key=lambda row: row[0]):
        (_, row), *repeats = group
        yield place, row, 1 + len(repeats)
