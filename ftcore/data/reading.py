"""Rows with their place, from JSON, JSON lines, CSV, Parquet, Arrow and text files, each also gzipped.

A file that cannot be read as a whole raises `UsageError` with file, line and cure. A single row that is wrong where the
rest can still be read comes out as a `RowError` in the row's stead, so that all of them can be named at once.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ftcore.data.json_rows import json_lines, json_values
from ftcore.data.sources import DatasetSpec, data_files
from ftcore.errors import Problem, RowError, UsageError
from ftcore.samples import Place

Row = Mapping[str, Any] | RowError
Rows = Iterator[tuple[Place, Row]]


def read_dataset(spec: DatasetSpec) -> Rows:
    """All rows of a dataset, file after file.

    Raises:
        UsageError: see `read_rows`.
    """
    if spec.path is None:
        yield from _hub_rows(spec)
        return
    for path in data_files(spec):
        yield from read_rows(path)


def read_rows(path: Path) -> Rows:
    """The rows of one file, in order, each with its place, or with a `RowError` where it alone is wrong.

    Raises:
        UsageError: the file is empty, cut off, in another encoding, or not what its name says.
    """
    name = path.name.lower().removesuffix(".gz")
    reader = next((read for suffix, read in _READERS.items() if name.endswith(suffix)), None)
    if reader is None:
        raise UsageError(Problem("cannot tell the file's format", str(path), f"known: {', '.join(_READERS)}"))
    try:
        yield from reader(path, _content(path))
    except OSError as error:
        raise UsageError(Problem(f"cannot be read: {error.strerror or error}", str(path))) from error


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(
                Problem(f"damaged gzip: {error}", str(path), "was the file cut off? fetch it again")
            ) from error
    if not content.strip():
        raise UsageError(Problem("the file is empty", str(path)))
    return content


def _text(path: Path, content: bytes) -> str:
    """The content as text; a byte-order mark is dropped.

    Raises:
        UsageError: with line and column of the first byte that is not UTF-8.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UsageError(Problem("the file is UTF-16", f"{path}:1:1", _CONVERT.format("utf-16", path)))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start
        line = content.count(b"\n", 0, start) + 1
        column = start - content.rfind(b"\n", 0, start)
        message = f"not UTF-8: byte 0x{content[start]:02x}"
        raise UsageError(Problem(message, f"{path}:{line}:{column}", _CONVERT.format("gb18030", path))) from error


_CONVERT = "save it as UTF-8, for instance: iconv -f {} -t utf-8 {}"


def _no_nul(path: Path, text: str) -> None:
    if (position := text.find("\0")) >= 0:
        line = text.count("\n", 0, position) + 1
        column = position - text.rfind("\n", 0, position)
        raise UsageError(
            Problem("a NUL byte", f"{path}:{line}:{column}", "the file is damaged or not text; fetch it again")
        )


def _read_json(path: Path, content: bytes) -> Rows:
    return json_values(str(path), _text(path, content))


def _read_jsonl(path: Path, content: bytes) -> Rows:
    return json_lines(str(path), _text(path, content))


def _read_txt(path: Path, content: bytes) -> Rows:
    """Every line that is not blank is a row with the column ``text``."""
    text = _text(path, content)
    _no_nul(path, text)
    lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    for row, (number, line) in enumerate(lines, 1):
        yield Place(str(path), row, number), {"text": line.removesuffix("\r")}


def _read_csv(path: Path, content: bytes) -> Rows:
    return _separated(path, content, ",")


def _read_tsv(path: Path, content: bytes) -> Rows:
    return _separated(path, content, "\t")


def _separated(path: Path, content: bytes, delimiter: str) -> Rows:
    text = _text(path, content)
    _no_nul(path, text)
    # A cell may hold a whole document: the module's limit of 128 KiB is lifted (the largest C long on Windows).
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader)
        _check_header(path, header)
        row, line = 0, reader.line_num + 1
        for cells in reader:
            if cells:
                row += 1
                yield Place(str(path), row, line), _cells(header, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            Problem(f"not CSV: {error}", f"{path}:{reader.line_num}", 'is a quote left open? a quote inside is ""')
        ) from error


def _check_header(path: Path, header: list[str]) -> None:
    for cell in header:
        if not cell.strip() or header.count(cell) > 1:
            reason = f"column {cell!r} stands twice" if cell.strip() else "a column has no name"
            raise UsageError(Problem(f"{reason} in the first line", f"{path}:1", f"it reads: {', '.join(header)}"))


def _cells(header: list[str], cells: list[str]) -> Row:
    if len(cells) == len(header):
        return dict(zip(header, cells, strict=True))
    return RowError(
        f"{len(cells)} cells, where the first line names {len(header)} columns",
        value=cells[-1],
        cure='put quotes around cells that hold the separator or line breaks, and write "" for a quote inside',
    )


def _read_parquet(path: Path, content: bytes) -> Rows:
    arrow = _pyarrow(path)
    from pyarrow import parquet

    try:
        batches = parquet.ParquetFile(arrow.BufferReader(content)).iter_batches(batch_size=1024)
        yield from _batches(path, batches)
    except arrow.ArrowException as error:
        raise _damaged(path, "Parquet", error) from error


def _read_arrow(path: Path, content: bytes) -> Rows:
    arrow = _pyarrow(path)
    try:
        yield from _batches(path, _record_batches(arrow, content))
    except arrow.ArrowException as error:
        raise _damaged(path, "Arrow", error) from error


def _record_batches(arrow: Any, content: bytes) -> Iterator[Any]:
    # The file format starts with ARROW1; what `datasets` writes as .arrow is the stream format.
    if content.startswith(b"ARROW1"):
        reader = arrow.ipc.open_file(content)
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(arrow.ipc.open_stream(content))


def _batches(path: Path, batches: Iterator[Any]) -> Rows:
    row = 0
    for batch in batches:
        for value in batch.to_pylist():
            row += 1
            yield Place(str(path), row), value


def _damaged(path: Path, kind: str, error: Exception) -> UsageError:
    reason = str(error).splitlines()[0].rstrip(".")
    return UsageError(Problem(f"not {kind}, or damaged: {reason}", str(path), "was the file cut off? fetch it again"))


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise UsageError(Problem("reading it needs the package pyarrow", str(path), "pip install pyarrow")) from error
    return pyarrow


def _hub_rows(spec: DatasetSpec) -> Rows:
    try:
        import datasets
    except ImportError as error:
        message = f"fetching dataset {spec.hub_id!r} needs the package datasets"
        raise UsageError(
            Problem(message, spec.where, "pip install datasets, or download it and give the file")
        ) from error
    try:
        rows = datasets.load_dataset(spec.hub_id, name=spec.subset, data_dir=spec.folder, split=spec.split)
    except Exception as error:  # the hub client raises a dozen kinds, its own and requests'
        reason = (str(error).splitlines() or [""])[0]
        message = f"cannot fetch dataset {spec.hub_id!r}: {type(error).__name__}: {reason}"
        raise UsageError(Problem(message, spec.where, "download it and give the file")) from error
    for number, row in enumerate(rows, 1):
        yield Place(spec.hub_id, number), row


_READERS: dict[str, Callable[[Path, bytes], Rows]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".txt": _read_txt,
}
