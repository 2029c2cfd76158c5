"""Turns the rows of one dataset into a table of tokens, with worker processes and the cache."""

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
"""Callback with the name of a dataset and the number of rows processed."""
Keep = Callable[[Place, AnyPrepared], Sequence[TokenizedRow]]
"""Selects what is stored of a prepared row."""
Batch = Sequence[tuple[Place, Row, int]]
"""Rows with their places and repeat counts."""


@dataclass(frozen=True)
class DatasetJob:
    """The tokenisation of one dataset."""

    spec: DatasetSpec
    plan: Plan
    renderer: Renderer
    encoder: Encoder
    keep: Keep
    progress: Progress | None = None
    questions: bool = False
    """Whether the last answer of a conversation is optional; rows without one are counted, not stored."""

    def table(self, store: Store, counts: RowCounts) -> MappedTable:
        """The table of the dataset; ``counts`` is filled.

        Raises:
            UsageError: the dataset cannot be read to its end; the rows before the error are counted.
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
            return None  # the content of a hub dataset is not known here
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
    """Tokenises one batch of rows in a worker process."""

    read: Callable[[Row], Sample | RowError]
    work: DatasetJob

    def __call__(self, batch: Batch) -> tuple[Table, RowCounts]:
        """The table of kept rows, and the counts of all rows."""
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
