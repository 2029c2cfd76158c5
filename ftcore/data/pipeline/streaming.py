"""Streams rows: tokenises them during training, for data that is larger than memory and disk.

The stream is endless: passes over the data (epochs) follow each other. A `Cursor` holds the position, so that a resumed
run continues exactly where it stopped. Rows are shuffled in windows, whose order depends on seed, epoch and window.
A shuffle buffer as in ``datasets`` would have to be saved in checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ftcore.api.samples import Place, Sample
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.datasets.mixing import mixed
from ftcore.data.datasets.packing import packs, splits, uncut
from ftcore.data.fingerprint import key_parts
from ftcore.data.formats.detection import open_rows, row_problem
from ftcore.data.pipeline.dataset_job import Keep
from ftcore.data.preprocessing.prepare import prepare
from ftcore.data.row_stats import RowCounts, RowStats, bad_rows
from ftcore.data.sources.readers import Row
from ftcore.data.storage.arrays import Table, TokenizedRow
from ftcore.data.tokenization.encoder import Encoder
from ftcore.errors import Problem, RowError, UsageError
from ftcore.utils.hashing import json_sha256

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

_AT_ONCE = 256
"""Rows tokenised per batch: 0.1 s of work between two steps."""
_PLACES = 1 << 16
"""Number of rows whose places are kept for messages."""

Read = Callable[[Row], Sample | RowError]


class Cursor(NamedTuple):
    """The position of a stream.

    Args:
        epoch: completed passes over the data.
        window: rows of this pass before the current window.
        offset: rows of the current window that are done, in its shuffled order.
        start: tokens of the next row that are done, if packs split rows.
    """

    epoch: int = 0
    window: int = 0
    offset: int = 0
    start: int = 0


class _Streamed(NamedTuple):
    """A row: the dataset item, its place, and its tokens."""

    item: dict[str, Any]
    place: Place
    parts: Sequence[TokenizedRow]


class Stream:
    """The endless stream of a plan's training rows.

    Args:
        plan: a plan with ``streaming``.
        kind: the dataset class that builds the items.
        keep: selects what is stored of a row.
        renderer: template and tokenizer.
        held_out: rows at the start of each pass that are left out, because they are evaluation data.
        plain: whether rows are neither shuffled nor packed.

    Attributes:
        counts: the row counts of the first pass so far, one per dataset.
    """

    def __init__(
        self, plan: Plan, kind: Any, keep: Keep, renderer: Renderer, held_out: int = 0, *, plain: bool = False
    ) -> None:
        self._plan, self._kind, self._keep, self._renderer, self._held_out = plan, kind, keep, renderer, held_out
        self._packs = packs(plan) and not plain
        self._shuffles = not (plan.data.disable_shuffling or plain)
        self._encoder = Encoder(renderer.tokenizer)
        self._known: OrderedDict[int, Place] = OrderedDict()
        self.counts = [RowCounts(name=spec.name) for spec in plan.datasets]
        self._counted = 0  # rows of the first pass that are counted: a batch may be read twice

    @property
    def places(self) -> OrderedDict[int, Place]:
        """``index`` -> place of the rows read last."""
        return self._known

    @property
    def size(self) -> str:
        """Replaces the number of rows in messages."""
        return "a stream"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that determines the rows and their order, with sizes and byte samples of files."""
        data = self._plan.data
        parts = [key_parts(spec, self._plan, self._renderer, self._keep.__name__) for spec in self._plan.datasets]
        order = [
            data.mix_strategy,
            data.interleave_probs,
            data.buffer_size,
            self._held_out,
            self._packs,
            self._shuffles,
        ]
        return json_sha256([parts, order])

    def items(self, cursor: Cursor) -> Iterator[tuple[dict[str, Any], Cursor]]:
        """Each row, or pack of rows, with the cursor after it.

        Raises:
            UsageError: no rows to train on, or bad rows that the plan does not allow.
        """
        rows = self._rows(cursor)
        return self._packed(rows, cursor) if self._packs else rows

    def first_pass(self) -> Iterator[tuple[_Streamed, Cursor]]:
        """The rows of one pass."""
        return self._epoch(Cursor())

    # ---- rows ----

    def _rows(self, cursor: Cursor) -> Iterator[tuple[dict[str, Any], Cursor]]:
        number = 0
        epoch, skip, offset = cursor.epoch, cursor.window, cursor.offset
        while True:
            before, found = number, skip + offset
            for row, after in self._epoch(Cursor(epoch, skip, offset)):
                self._remember(number, row.place)
                yield {**row.item, "index": number}, after
                number += 1
            if bad := bad_rows(self.counts, self._plan.data):
                raise bad
            if number == before and not found:
                raise UsageError([Problem(f"dataset {one.name!r} has nothing to train on") for one in self.counts])
            epoch, skip, offset = epoch + 1, 0, 0

    def _epoch(self, cursor: Cursor) -> Iterator[tuple[_Streamed, Cursor]]:
        rows = islice(self._raw(), self._held_out + cursor.window, None)
        window, offset = cursor.window, cursor.offset
        while batch := list(islice(rows, self._plan.data.buffer_size)):
            order = self._order(len(batch), cursor.epoch, window)
            for start in range(offset, len(order), _AT_ONCE):
                chosen = order[start : start + _AT_ONCE]
                known = self._known_rows(window + start, len(chosen)) if cursor.epoch == 0 else len(chosen)
                for done, row in self._tokenised([batch[one] for one in chosen], known):
                    yield row, Cursor(cursor.epoch, window, start + done + 1)
            window, offset = window + len(batch), 0

    def _known_rows(self, position: int, count: int) -> int:
        """How many of ``count`` rows from ``position`` are already counted; marks all of them as counted."""
        known = min(max(self._counted - position, 0), count)
        self._counted = max(self._counted, position + count)
        return known

    def _order(self, count: int, epoch: int, window: int) -> list[int]:
        if not self._shuffles:
            return list(range(count))
        return np.random.default_rng([self._plan.training.seed, epoch, window]).permutation(count).tolist()

    def _raw(self) -> Iterator[tuple[int, Read, Place, Row]]:
        """All rows of a pass, mixed, each with the index of its dataset."""
        data = self._plan.data
        sources = [partial(self._source, number) for number in range(len(self._plan.datasets))]
        return mixed(sources, data.mix_strategy, data.interleave_probs, self._plan.training.seed)

    def _source(self, number: int) -> Iterator[tuple[int, Read, Place, Row]]:
        rows, read = open_rows(self._plan.datasets[number], self._plan)
        return ((number, read, place, row) for place, row in rows)

    def _tokenised(self, batch: Sequence[tuple[int, Read, Place, Row]], known: int) -> Iterator[tuple[int, _Streamed]]:
        """The kept rows with their index in the batch; the first ``known`` rows of the batch are already counted."""
        samples = ((place, read(row)) for _, read, place, row in batch)
        kept, again = [], [RowCounts(name=one.name) for one in self.counts]
        for position, (place, row) in enumerate(prepare(samples, self._renderer, uncut(self._plan), self._encoder)):
            of_dataset = (again if position < known else self.counts)[batch[position][0]]
            if isinstance(row, RowError):
                of_dataset.add_bad(row_problem(place, row))
            else:
                of_dataset.add(place, row)
                if not row.untrainable:
                    kept.append((position, place, self._keep(place, row)))
        data, share = self._plan.data, self._plan.data.max_bad_rows
        known_now = share is None or share >= 1 or share == 0  # a fraction is checked at the end of a pass
        if known_now and (bad := bad_rows(self.counts, data) or bad_rows(again, data)):
            raise bad
        dataset = self._kind.over([Table.of([part for _, _, parts in kept for part in parts])])
        for number, (position, place, parts) in enumerate(kept):
            yield position, _Streamed(dataset[number], place, parts)

    def _remember(self, number: int, place: Place) -> None:
        self._known[number] = place
        if len(self._known) > _PLACES:
            self._known.popitem(last=False)

    # ---- packs ----

    def _packed(
        self, rows: Iterator[tuple[dict[str, Any], Cursor]], cursor: Cursor
    ) -> Iterator[tuple[dict[str, Any], Cursor]]:
        """Packs rows in order: a row that does not fit starts the next pack, or is split between the two.

        Partly filled packs cost nothing, because there is no padding.
        """
        size, split = self._plan.data.cutoff_len, splits(self._plan)
        pack: list[dict[str, Any]] = []
        used, at, start = 0, cursor, cursor.start
        for row, after in rows:
            length = len(row["input_ids"])
            while True:
                end = min(length, start + size - used) if split else length
                if end - start <= size - used and end - start >= min(2, length - start):
                    pack.append(_piece(row, start, end))
                    used += end - start
                    if end == length:
                        break
                    start = end - 1  # read again, not trained: see `ftcore.data.datasets.packing.fill_and_split`
                yield _together(pack), Cursor(*at[:3], start)
                pack, used = [], 0
            at, start = after, 0


def _piece(row: dict[str, Any], start: int, end: int) -> dict[str, Any]:
    return {"input_ids": row["input_ids"][start:end], "weights": row["weights"][start:end], "index": row["index"]}


def _together(pack: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "input_ids": np.concatenate([piece["input_ids"] for piece in pack]),
        "weights": np.concatenate([piece["weights"] for piece in pack]),
        "lengths": np.array([len(piece["input_ids"]) for piece in pack]),
        "index": np.array([piece["index"] for piece in pack]),
    }


class StreamAccounting(RowStats):
    """The row counts of a stream so far."""

    def summary(self) -> str:
        """For the terminal, before any row is read."""
        names = ", ".join(counts.name for counts in self.train)
        held_out = RowStats(eval=self.eval, split_off=self.split_off, notes=self.notes).summary()
        return "\n".join([f"{names}: streamed; rows are counted as they are read", *filter(None, [held_out])])

    def read_so_far(self) -> str:
        """For the terminal, when the run has ended."""
        return super().summary()


def hold_out(stream: Stream, count: int) -> tuple[Table, int]:
    """Takes the first trainable rows for evaluation; returns them and the number of rows read.

    Args:
        stream: a plain stream.
        count: number of rows to take.

    Raises:
        UsageError: no rows would be left to train on.
    """
    kept: list[TokenizedRow] = []
    before = 0
    for number, (row, after) in enumerate(stream.first_pass(), 1):
        if number > count:
            return Table.of(kept), before
        kept += row.parts
        before = after.window + after.offset
    message = f"val_size {count:,} takes all rows: no rows are left to train on"
    raise UsageError(Problem(message, hint="write a smaller val_size"))
