"""Tables of tokenised rows as flat arrays, in memory or memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from ftcore.api.samples import Place
from ftcore.data.multimodal.images import Images, ReadImage, as_lines, from_lines
from ftcore.data.preprocessing.prepare import Prepared
from ftcore.utils.hashing import combined, new_digest, sha256_of

Ints = npt.NDArray[np.int64]
ARRAYS = {
    "ids": np.int32,
    "weights": np.float32,
    "reasons": np.uint8,
    "offsets": np.int64,
    "places": np.int64,
    "times": np.int64,
    "images": np.uint8,
}
"""Name of an array and its file -> dtype. ``images`` contains JSON lines."""


class TokenizedRow(NamedTuple):
    """The T tokens of a prepared row."""

    place: Place
    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    reasons: npt.NDArray[np.uint8]
    images: tuple[ReadImage, ...] = ()
    times: int = 1
    """The repeat count of the row."""

    @classmethod
    def of(cls, place: Place, row: Prepared) -> TokenizedRow:
        """Copies the kept tokens: a view would keep truncated tokens in memory."""
        labelled, kept = row.labelled, row.kept
        return cls(
            place,
            labelled.encoded.ids[:kept].copy(),
            labelled.weights[:kept].copy(),
            labelled.reasons[:kept].copy(),
            tuple(ReadImage.of(path) for path in row.rendered.images),
        )


class SourceLocations(Sequence[Place]):
    """The places of rows, in 24 bytes each.

    Args:
        files: file names.
        numbers: int64 ``[R, 3]``: file, row and line.
    """

    def __init__(self, files: Sequence[str], numbers: Ints) -> None:
        self.files, self.numbers = tuple(files), numbers

    @classmethod
    def of(cls, places: Sequence[Place]) -> SourceLocations:
        """These places."""
        files = {place.file: number for number, place in enumerate({place.file: place for place in places}.values())}
        numbers = [(files[place.file], place.row, place.line) for place in places]
        return cls(tuple(files), np.array(numbers, dtype=np.int64).reshape(-1, 3))

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Place: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Place]: ...
    def __getitem__(self, index: int | slice) -> Place | Sequence[Place]:
        if isinstance(index, slice):
            return SourceLocations(self.files, self.numbers[index])
        file, row, line = self.numbers[index].tolist()
        return Place(self.files[file], row, line)

    def __iter__(self) -> Iterator[Place]:
        return (Place(self.files[file], row, line) for file, row, line in self.numbers.tolist())


class Table:
    """R rows, N tokens in all.

    Args:
        ids: int32 ``[N]``.
        weights: float32 ``[N]``, the loss weight of each token; 0: not trained.
        reasons: uint8 ``[N]``, `ftcore.data.tokenization.loss_reasons.Reason`.
        offsets: int64 ``[R + 1]``: row i is tokens ``offsets[i]`` to ``offsets[i + 1]``.
        places: the place of each row.
        images: the images of rows that have some.
        times: int64 ``[R]``, the repeat count of each row; default 1.
    """

    def __init__(
        self,
        ids: npt.NDArray[np.int32],
        weights: npt.NDArray[np.float32],
        reasons: npt.NDArray[np.uint8],
        offsets: Ints,
        places: SourceLocations,
        images: Images | None = None,
        times: Ints | None = None,
    ) -> None:
        assert len(ids) == len(weights) == len(reasons) == offsets[-1]
        assert len(offsets) == len(places) + 1
        self.ids, self.weights, self.reasons, self.offsets, self.places = ids, weights, reasons, offsets, places
        self.images: Images = images or {}
        self.times: Ints = np.ones(len(places), np.int64) if times is None else times

    @classmethod
    def of(cls, rows: Sequence[TokenizedRow]) -> Table:
        """These rows, in this order."""
        return cls(
            _joined([row.ids for row in rows], np.int32),
            _joined([row.weights for row in rows], np.float32),
            _joined([row.reasons for row in rows], np.uint8),
            np.concatenate([[0], np.cumsum([len(row.ids) for row in rows])]).astype(np.int64),
            SourceLocations.of([row.place for row in rows]),
            {number: row.images for number, row in enumerate(rows) if row.images},
            np.array([row.times for row in rows], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of ids, weights, row offsets and images."""
        arrays = (self.ids, self.weights, self.offsets, np.frombuffer(as_lines(self.images), dtype=np.uint8))
        return combined([sha256_of(np.ascontiguousarray(array).data) for array in arrays])


class MappedTable(Table):
    """A memory-mapped table. Another process maps the files again instead of copying the data."""

    source: tuple[Path, tuple[str, ...], dict[str, str]]

    def __reduce__(self) -> Any:
        return read_table, self.source


class TableWriter:
    """Context manager that appends tables to files, so that memory holds one table at a time.

    Args:
        folder: an empty folder.
        files: file names of the places, in the same order as for `read_table`.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self._files = {file: number for number, file in enumerate(files)}
        self._streams = {name: (folder / name).open("wb") for name in ARRAYS}
        self._digests = {name: new_digest() for name in ARRAYS}
        self._tokens = self._rows = 0
        self._write("offsets", np.zeros(1, dtype=np.int64))

    def append(self, table: Table) -> None:
        """Adds the table's rows."""
        numbers = table.places.numbers.copy()
        # The places of a hub dataset have only its id.
        numbers[:, 0] = np.array([self._files[file] for file in table.places.files] or [0])[numbers[:, 0]]
        for name, array in (("ids", table.ids), ("weights", table.weights), ("reasons", table.reasons)):
            self._write(name, array)
        self._write("offsets", table.offsets[1:] + self._tokens)
        self._write("places", numbers)
        self._write("times", table.times)
        self._write("images", np.frombuffer(as_lines(table.images, self._rows), dtype=np.uint8))
        self._tokens += len(table.ids)
        self._rows += len(table)

    def _write(self, name: str, array: npt.NDArray[Any]) -> None:
        content = np.ascontiguousarray(array, dtype=ARRAYS[name]).data
        self._streams[name].write(content)
        self._digests[name].update(content)

    def digests(self) -> dict[str, str]:
        """sha256 of each file; the files are complete after the ``with`` block."""
        return {name: digest.hexdigest() for name, digest in self._digests.items()}

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for stream in self._streams.values():
            stream.close()


def read_table(folder: Path, files: Sequence[str], digests: Mapping[str, str]) -> MappedTable:
    """Memory-maps the table that a `TableWriter` wrote."""
    arrays: dict[str, Any] = {name: _mapped(folder / name, dtype) for name, dtype in ARRAYS.items()}
    places = SourceLocations(files, arrays.pop("places").reshape(-1, 3))
    images = from_lines(arrays.pop("images").tobytes())
    table = MappedTable(**arrays, places=places, images=images)
    table.source = (folder, tuple(files), dict(digests))
    table.fingerprint = combined([digests[name] for name in ("ids", "weights", "offsets", "images")])
    return table


def _mapped(path: Path, dtype: Any) -> npt.NDArray[Any]:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.zeros(0, dtype=dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="c"))  # copy-on-write: torch warns about read-only arrays


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype=dtype)
