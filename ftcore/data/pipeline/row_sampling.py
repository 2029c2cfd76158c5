"""``num_samples`` of a dataset's description: so many of its rows at random, or all of them several times.

LLaMA-Factory takes a random permutation of the rows, its first ``num_samples``, and fills up what is missing with rows
drawn with replacement. Here a further permutation fills up, so that no row comes more than once oftener than another.
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
    """How often each row of a dataset is taken.

    Args:
        times: int64 ``[R]``, for each of the dataset's rows, in their order; 0 leaves it out.
    """

    times: npt.NDArray[np.int64]

    @property
    def of(self) -> int:
        """Rows of the dataset."""
        return len(self.times)

    def rows(self, rows: Iterable[tuple[Place, T]]) -> Iterator[tuple[Place, T]]:
        """The dataset's rows, each as often as it is taken, one right after the other."""
        for (place, row), times in zip(rows, self.times.tolist(), strict=False):
            for _ in range(times):
                yield place, row


def drawn_rows(count: int, num_samples: int, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of the rows that are drawn, in the order of the draw.

    Args:
        count: rows of the dataset.
        num_samples: rows to draw; above ``count`` every row comes before any comes again.
        seed: of the draw.
    """
    if not count:
        return np.zeros(0, np.int64)
    random = np.random.default_rng(seed)
    passes = [random.permutation(count) for _ in range(-(-num_samples // count))]
    return np.concatenate(passes)[:num_samples]


def sampling_of(spec: DatasetSpec, plan: Plan) -> Sampling | None:
    """The dataset's sampling; None where its description asks for none. All of its rows are read to count them.

    Of what is drawn ``max_samples`` takes the first.

    Raises:
        UsageError: see `ftcore.data.sources.readers.read_dataset`.
    """
    if spec.num_samples is None:
        return None
    count = sum(1 for _ in read_dataset(spec, streaming=plan.data.streaming, max_row_bytes=plan.data.max_row_bytes))
    drawn = drawn_rows(count, spec.num_samples, plan.training.seed)[: plan.data.max_samples]
    return Sampling(np.bincount(drawn, minlength=count).astype(np.int64))


def counted(rows: Iterable[tuple[Place, T]]) -> Iterator[tuple[Place, T, int]]:
    """Each row once, with how often it comes: repeats stand side by side."""
    for place, group in groupby(rows, key=lambda row: row[0]):
        (_, row), *repeats = group
        yield place, row, 1 + len(repeats)
