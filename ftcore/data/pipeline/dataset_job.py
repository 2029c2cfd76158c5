"""One dataset from rows to a table: the work that is shared among processes and kept between runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from ftcore.api.dataset_spec import DatasetSpec
from ftcore.api.samples import Place, Sample
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.datasets.packing import uncut
from ftcore.data.fingerprint import key_parts
from ftcore.data.formats.detection import open_rows, row_problem
from ftcore.data.pipeline.row_sampling import counted, sampling_of
from ftcore.data.pipeline.worker_pool import in_order, processes
from ftcore.data.preprocessing.prepare import AnyPrepared, prepare
from ftcore.data.row_stats import RowCounts
from ftcore.data.sources.readers import Row
from ftcore.data.sources.resolve import data_files
from ftcore.data.storage.arrays import MappedTable, Table, TableWriter, TokenizedRow
from ftcore.data.storage.cache import Store
from ftcore.data.tokenization.encoder import Encoder
from ftcore.errors import Problem, RowError, UsageError

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

Progress = Callable[[str, int], None]
"""Called with a dataset's name and the number of rows done so far."""
Keep = Callable[[Place, AnyPrepared], Sequence[TokenizedRow]]
"""What is kept of a prepared row that is trained on."""
Batch = Sequence[tuple[Place, Row, int]]
"""Rows, and how often each is taken."""


@dataclass(frozen=True)
class DatasetJob:
    """A dataset, and what is to be made of it."""

    spec: DatasetSpec
    plan: Plan
    renderer: Renderer
    encoder: Encoder
    keep: Keep
    progress: Progress | None = None
    questions: bool = False
    """Whether conversations need no last answer; those without are counted, and not kept."""

    def table(self, store: Store, counts: RowCounts) -> MappedTable:
        """The dataset's table; its rows are counted.

        Raises:
            UsageError: the dataset cannot be read as a whole; what can be read of it is counted all the same.
        """
        files = [str(path) for path in data_files(self.spec)] if self.spec.path else [self.spec.hub_id]
        table = store.table(self._name(), self._parts(), files, self._fill, counts)
        if self.progress is not None:
            self.progress(self.spec.name, counts.rows)
        return table

    def _name(self) -> str:
        return self.spec.name if self.spec.split == "train" else f"{self.spec.name}-{self.spec.split}"

    def _parts(self) -> dict[str, str] | None:
        if self.spec.path is None:
            return None  # only the hub knows whether it is still the same
        try:
            return key_parts(self.spec, self.plan, self.renderer, self.keep.__name__, questions=self.questions)
        except OSError as error:
            where = str(error.filename or self.spec.path)
            raise UsageError(Problem(f"cannot be read: {error.strerror or error}", where)) from error

    def _fill(self, writer: TableWriter, counts: RowCounts) -> None:
        sampling, data = sampling_of(self.spec, self.plan), self.plan.data
        rows, read = open_rows(self.spec, self.plan, sampling, questions=self.questions)
        counts.of = sampling.of if sampling else 0
        step = Step(read, self)
        for table, more in in_order(
            step, _batches(counted(rows), data.preprocessing_batch_size), processes(data.preprocessing_num_workers)
        ):
            writer.append(table)
            counts.merge(more)
            if self.progress is not None and counts.rows % data.preprocessing_batch_size == 0:
                self.progress(self.spec.name, counts.rows)


@dataclass(frozen=True)
class Step:
    """Rows to tokens: what a process does with one batch."""

    read: Callable[[Row], Sample | RowError]
    work: DatasetJob

    def __call__(self, batch: Batch) -> tuple[Table, RowCounts]:
        """The rows that are kept, and the counts of all."""
        work, kept, counts = self.work, [], RowCounts(name=self.work.spec.name)
        samples = ((place, self.read(row)) for place, row, _ in batch)
        prepared = prepare(samples, work.renderer, uncut(work.plan), work.encoder, questions=work.questions)
        for (place, row), (*_, times) in zip(prepared, batch, strict=True):
            if isinstance(row, RowError):
                counts.add_bad(row_problem(place, row), times)
                continue
            counts.add(place, row, times)
            if not row.untrainable:
                kept.append([part._replace(times=times) for part in work.keep(place, row)])
        return Table.of(list(chain.from_iterable(kept))), counts


def _batches(rows: Iterator[tuple[Place, Row, int]], size: int) -> Iterator[Batch]:
    while batch := list(islice(rows, size)):
        yield batch
