"""Reads rows with their places from JSON, JSON lines, CSV, Parquet, Arrow and text files, each also gzipped.

An unreadable file raises `UsageError` with file, line and fix. If only one row is wrong, the reader yields a `RowError`
in its place and continues, so that all bad rows are reported at once.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from ftcore.api.dataset_spec import DatasetSpec
from ftcore.api.samples import Place
from ftcore.data.sources import columnar
from ftcore.data.sources.csv_rows import check_no_nul, separated_rows
from ftcore.data.sources.json_rows import json_lines, json_values
from ftcore.data.sources.resolve import data_files
from ftcore.data.sources.row_size import MAX_ROW_BYTES, size_of, too_large
from ftcore.data.sources.text_window import TextWindow
from ftcore.errors import Problem, RowError, UsageError

Row = Mapping[str, Any] | RowError
Rows = Iterator[tuple[Place, Row]]

_BLOCK = 1 << 16
"""Bytes per read when a file is scanned."""
_BATCH = 1024
"""Rows of Parquet per decoded batch."""


def read_dataset(spec: DatasetSpec, *, streaming: bool = False, max_row_bytes: int = MAX_ROW_BYTES) -> Rows:
    """All rows of a dataset, file after file.

    Args:
        spec: the dataset.
        streaming: whether rows of a hub dataset are downloaded while they are read.
        max_row_bytes: see `read_rows`.

    Raises:
        UsageError: see `read_rows`.
    """
    if spec.path is None:
        yield from _hub_rows(spec, streaming, max_row_bytes)
        return
    for path in data_files(spec):
        yield from read_rows(path, max_row_bytes)


def read_rows(path: Path, max_row_bytes: int = MAX_ROW_BYTES) -> Rows:
    """The rows of one file in order, each with its place; a bad row is a `RowError`.

    The file is read in pieces: memory holds one row and about a megabyte around it.

    Args:
        path: the file.
        max_row_bytes: limit of a row. In text files its bytes in the file count, in others the bytes of its strings.

    Raises:
        UsageError: the file is empty, truncated, in another encoding, or of another format than its name says.
    """
    name = path.name.lower().removesuffix(".gz")
    reader = next((read for suffix, read in _READERS.items() if name.endswith(suffix)), None)
    if reader is None:
        raise UsageError(Problem("unknown file format", str(path), f"known: {', '.join(_READERS)}"))
    try:
        _check_not_empty(path)
        yield from reader(path, max_row_bytes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(
            Problem(f"damaged gzip: {error}", str(path), "is the file truncated? download it again")
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(_not_utf8(path)) from error
    except OSError as error:
        raise UsageError(Problem(f"cannot be read: {error.strerror or error}", str(path))) from error


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _check_not_empty(path: Path) -> None:
    with _opened(path) as stream:
        while block := stream.read(_BLOCK):
            if block.strip():
                return
    raise UsageError(Problem("the file is empty", str(path), "add rows to it, or remove it from the run"))


@contextmanager
def _text(path: Path, newline: str) -> Iterator[TextIO]:
    """The file as text, without a byte-order mark.

    Args:
        path: read as UTF-8.
        newline: "\\n" if only a line feed ends lines, "" if a carriage return does too; line ends are not translated.

    Raises:
        UsageError: the file is UTF-16.
    """
    with _opened(path) as stream:
        if stream.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UsageError(Problem("the file is UTF-16", f"{path}:1:1", _CONVERT.format("utf-16", path)))
        stream.seek(0)
        with io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline) as text:
            yield text


def _not_utf8(path: Path) -> Problem:
    """Line and column of the first byte that is not UTF-8; the decoder knows only its position in a block."""
    line, before, decoder = 1, 0, codecs.getincrementaldecoder("utf-8")()
    with _opened(path) as stream:
        while block := stream.read(_BLOCK):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                start = error.start - pending
                breaks = block.count(b"\n", 0, max(start, 0))
                column = start - block.rfind(b"\n", 0, max(start, 0)) if breaks else before + start + 1
                place = f"{path}:{line + breaks}:{column}"
                return Problem(
                    f"not UTF-8: byte 0x{error.object[error.start]:02x}", place, _CONVERT.format("gb18030", path)
                )
            breaks = block.count(b"\n")
            line += breaks
            before = len(block) - block.rfind(b"\n") - 1 if breaks else before + len(block)
    place = f"{path}:{line}:{before - len(decoder.getstate()[0]) + 1}"
    return Problem("not UTF-8: the file ends inside a character", place, "is the file truncated? download it again")


_CONVERT = "save it as UTF-8, for instance: iconv -f {} -t utf-8 {}"


def _read_json(path: Path, most: int) -> Rows:
    with _text(path, "\n") as stream:
        yield from json_values(str(path), TextWindow(stream), most)


def _read_jsonl(path: Path, most: int) -> Rows:
    with _text(path, "\n") as stream:
        yield from json_lines(str(path), TextWindow(stream), most)


def _read_txt(path: Path, most: int) -> Rows:
    """Each line that is not blank is a row with the column ``text``."""
    row = 0
    with _text(path, "\n") as stream:
        for number, line in TextWindow(stream).lines(most):
            if isinstance(line, RowError) or (line and not line.isspace()):
                row += 1
                if isinstance(line, str):
                    check_no_nul(str(path), number, line)
                yield (
                    Place(str(path), row, number),
                    {"text": line.removesuffix("\r")} if isinstance(line, str) else line,
                )


def _read_csv(path: Path, most: int) -> Rows:
    with _text(path, "") as stream:
        yield from separated_rows(str(path), stream, ",", most)


def _read_tsv(path: Path, most: int) -> Rows:
    with _text(path, "") as stream:
        yield from separated_rows(str(path), stream, "\t", most)


def _read_parquet(path: Path, most: int) -> Rows:
    arrow = _pyarrow(path)
    from pyarrow import parquet

    try:
        with _columnar(arrow, path) as source:
            yield from _placed(path, most, arrow, parquet.ParquetFile(source).iter_batches(batch_size=_BATCH))
    except (arrow.ArrowException, OSError) as error:
        raise _damaged(path, "Parquet", error) from error


def _read_arrow(path: Path, most: int) -> Rows:
    arrow = _pyarrow(path)
    try:
        with _columnar(arrow, path) as source:
            yield from _placed(path, most, arrow, _record_batches(arrow, source))
    except (arrow.ArrowException, OSError) as error:
        raise _damaged(path, "Arrow", error) from error


def _columnar(arrow: Any, path: Path) -> Any:
    """The file for pyarrow, memory-mapped. A gzipped file is unpacked, because it is read from the end."""
    if not path.name.lower().endswith(".gz"):
        return arrow.memory_map(str(path))
    with _opened(path) as stream:
        return arrow.BufferReader(stream.read())


def _record_batches(arrow: Any, source: Any) -> Iterator[Any]:
    # The file format starts with ARROW1; what `datasets` writes as .arrow is the stream format.
    kind = source.read(6)
    source.seek(0)
    if kind == b"ARROW1":
        reader = arrow.ipc.open_file(source)
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(arrow.ipc.open_stream(source))


def _placed(path: Path, most: int, arrow: Any, batches: Iterable[Any]) -> Rows:
    for number, row in enumerate(columnar.rows(arrow, batches, str(path), most), 1):
        yield Place(str(path), number), row


def _damaged(path: Path, kind: str, error: Exception) -> Exception:
    if isinstance(error, gzip.BadGzipFile) or (isinstance(error, OSError) and error.errno is not None):
        return error  # an error of the file system; pyarrow's own errors about truncated messages have no errno
    reason = str(error).splitlines()[0].rstrip(".")
    return UsageError(
        Problem(f"not {kind}, or damaged: {reason}", str(path), "is the file truncated? download it again")
    )


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise UsageError(
            Problem("reading this file requires the package pyarrow", str(path), "pip install pyarrow")
        ) from error
    return pyarrow


def _hub_rows(spec: DatasetSpec, streaming: bool, most: int) -> Rows:
    try:
        import datasets
    except ImportError as error:
        message = f"downloading dataset {spec.hub_id!r} requires the package datasets"
        raise UsageError(
            Problem(message, spec.where, "pip install datasets, or download the dataset and write its file name")
        ) from error
    from ftcore.models.hub_access import HubName

    if problem := HubName(name=spec.hub_id, what="dataset").problem(spec.where):
        raise UsageError(problem)
    try:
        rows = datasets.load_dataset(
            spec.hub_id, name=spec.subset, data_dir=spec.folder, split=spec.split, streaming=streaming
        )
    except Exception as error:  # the hub client raises a dozen kinds, its own and requests'
        reason = (str(error).splitlines() or [""])[0]
        message = f"cannot download dataset {spec.hub_id!r}: {type(error).__name__}: {reason}"
        raise UsageError(Problem(message, spec.where, "download the dataset and write its file name")) from error
    for number, row in enumerate(rows, 1):
        size = size_of(row)
        found = too_large(size, most, "") if size > most else columnar.hub_row(row, getattr(rows, "features", None))
        yield Place(spec.hub_id, number), found


_READERS: dict[str, Callable[[Path, int], Rows]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".txt": _read_txt,
}
