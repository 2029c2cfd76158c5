"""Caches tokenised datasets by content, with locks between processes and checksums."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.api.samples import Place
from ftcore.data.fingerprint import SOURCES, differences
from ftcore.data.row_stats import RowCounts
from ftcore.data.storage.arrays import ARRAYS, MappedTable, TableWriter, read_table
from ftcore.errors import Problem, RunError, UsageError, listed
from ftcore.utils.cache_dir import cache_root
from ftcore.utils.content_store import (
    MANIFEST,
    TOKENS,
    Entry,
    entry_name,
    making_lock,
    read_manifest,
    store_root,
    write_folder,
)
from ftcore.utils.file_digests import file_sha256
from ftcore.utils.file_lock import made_under
from ftcore.utils.files import leftovers

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

Fill = Callable[[TableWriter, RowCounts], None]
"""Writes the rows of a dataset and counts them."""


@dataclass(frozen=True)
class Store:
    """The store of a plan's tokenised datasets.

    Args:
        root: the folder; None for no cache.
        named: whether the folder is ``tokenized_path``: data that does not match is then an error.
        overwrite: whether existing data is recreated.
        locking: the option ``use_file_locking``.
    """

    root: Path | None
    named: bool = False
    overwrite: bool = False
    locking: bool = True

    @classmethod
    def of(cls, plan: Plan) -> Store:
        """``tokenized_path``, else the cache folder, if it is writable."""
        overwrite, locking = plan.data.overwrite_cache, plan.training.use_file_locking
        if plan.data.tokenized_path:
            return cls(Path(plan.data.tokenized_path).expanduser(), named=True, overwrite=overwrite, locking=locking)
        root = store_root()
        try:
            (root / TOKENS.name).mkdir(parents=True, exist_ok=True)
        except OSError:
            return cls(None)
        writable = os.access(root / TOKENS.name, os.W_OK)
        return cls(root if writable else None, overwrite=overwrite, locking=locking)

    def table(
        self, name: str, parts: Mapping[str, str] | None, files: Sequence[str], fill: Fill, counts: RowCounts
    ) -> MappedTable:
        """The table of a dataset from the cache, or newly created, and its counts.

        Args:
            name: name of the dataset, for messages and for its folder in ``tokenized_path``.
            parts: see `ftcore.data.fingerprint.key_parts`; None if the content of the dataset is unknown.
            files: file names for the places of rows.
            fill: creates the table.
            counts: receives the row counts.

        Raises:
            UsageError: ``tokenized_path`` has data of other settings or files.
            RunError: the disk is full, or its file system has no locks.
        """
        if self.root is None or parts is None:
            return _temporary_table(files, fill, counts)
        if not self.named:
            entry = Entry(TOKENS, entry_name(dict(parts), SOURCES), self.root, self.locking)
            with _locked(entry.making(), self.root):
                held = None if self.overwrite else entry.open()
                table = None if held is None else _read(entry.folder, parts, files, counts)
                if table is None:
                    if held is not None:
                        held.close()
                    table = _create(entry.folder, name, parts, files, fill, counts)
                    held = entry.open()
            if held is not None:
                weakref.finalize(table, held.close)  # the table is memory-mapped: pruning must keep it
            return table
        folder = self.root / re.sub(r"[^\w.-]+", "-", name).strip("-")
        with _locked(_creating_in(folder, self.locking), self.root):
            if self.overwrite:
                _refuse_foreign_files(folder, name)
            table = None if self.overwrite else _read(folder, parts, files, counts)
            if table is None and not self.overwrite:
                _refuse_mismatch(folder, name, parts)
            return (
                _create(folder, name, parts, files, fill, counts) if table is None else table
            )  # a table without rows is falsy


def _read(folder: Path, parts: Mapping[str, str], files: Sequence[str], counts: RowCounts) -> MappedTable | None:
    """The table in a folder; None if it is missing, damaged or does not match."""
    manifest = read_manifest(folder)
    if (
        manifest is None
        or manifest.get("files", {}).keys() != ARRAYS.keys()
        or manifest["value"]["parts"] != dict(parts)
    ):
        return None
    try:
        if any(file_sha256(folder / name) != known for name, known in manifest["files"].items()):
            return None
    except OSError:
        return None
    table = read_table(folder, files, manifest["files"])
    if any(picture.changed for pictures in table.images.values() for picture in pictures):
        return None
    _restore_counts(counts, manifest["value"]["counts"], files)
    return table


def _create(
    folder: Path, name: str, parts: Mapping[str, str], files: Sequence[str], fill: Fill, counts: RowCounts
) -> MappedTable:
    """Creates the table in a temporary folder and renames it when complete."""
    value: dict[str, Any] = {"parts": dict(parts)}  # the counts follow when all rows are written
    digests: dict[str, str] = {}

    def write(staged: Path) -> Mapping[str, str]:
        with TableWriter(staged, files) as writer:
            fill(writer, counts)
        digests.update(writer.digests())
        value["counts"] = _counts(counts, files)
        return digests

    try:
        write_folder(folder, name, value, write)
    except OSError as error:
        free = f"free some space, or set FT_CACHE to a folder on another disk (it is {cache_root()})"
        raise RunError(f"tokens cannot be written to {folder}: {error.strerror or error}; {free}") from error
    return read_table(folder, files, digests)


def _temporary_table(files: Sequence[str], fill: Fill, counts: RowCounts) -> MappedTable:
    """A table in a temporary folder that is removed with it."""
    folder = Path(tempfile.mkdtemp(prefix="ft-"))
    try:
        with TableWriter(folder, files) as writer:
            fill(writer, counts)
        table = read_table(folder, files, writer.digests())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(table, shutil.rmtree, folder, ignore_errors=True)
    return table


def _refuse_mismatch(folder: Path, name: str, parts: Mapping[str, str]) -> None:
    if not folder.exists():
        return
    manifest = read_manifest(folder) or {}
    known = manifest.get("value", manifest)  # the format of versions before 0.2
    changed = differences(known["parts"], parts) if "parts" in known else []
    why = "; ".join(changed) or "it is damaged, an image has changed, or ft did not write it"
    message = f"tokenized_path: {folder} does not match dataset {name!r} of this run: {why}"
    hint = "write another tokenized_path, or overwrite_cache: true to recreate it"
    raise UsageError(Problem(message, hint=hint))


def _refuse_foreign_files(folder: Path, name: str) -> None:
    """Raises an error for foreign files: recreating the dataset replaces the whole folder."""
    if not folder.is_dir():
        return
    if strange := sorted(path.name for path in folder.iterdir() if path.name not in (*ARRAYS, MANIFEST)):
        message = f"tokenized_path: {folder} holds files that ft did not write ({listed(strange, 3)})"
        hint = f"write another tokenized_path; overwrite_cache: true recreates dataset {name!r} there"
        raise UsageError(Problem(message, hint=hint))


@contextmanager
def _creating_in(folder: Path, locking: bool) -> Iterator[None]:
    """Lets one process at a time create a dataset in ``tokenized_path``; see `Entry.making`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with made_under(making_lock(folder), locking=locking) as alone:
        if alone:
            for left in leftovers(folder):
                shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def _locked(lock: AbstractContextManager[Any], root: Path) -> Iterator[None]:
    """Holds a file lock; a folder that is not writable is a `UsageError`."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except OSError as error:
            raise UsageError(f"{root} cannot be written: {error.strerror or error}") from error
        yield


def _counts(counts: RowCounts, files: Sequence[str]) -> dict[str, Any]:
    """The counts as JSON values. Files are numbers, because their paths are not part of the content."""
    numbers = {field.name: getattr(counts, field.name) for field in fields(counts) if field.type == "int"}
    bad = [[_without(problem.where, files), problem.message, problem.hint] for problem in counts.bad]
    untrainable = {
        why: [[files.index(place.file), place.row, place.line] for place in places]
        for why, places in counts.untrainable.items()
    }
    thoughtless = [[files.index(place.file), place.row, place.line] for place in counts.thoughtless_places]
    return {**numbers, "bad": bad, "untrainable": untrainable, "thoughtless_places": thoughtless}


def _restore_counts(counts: RowCounts, content: Mapping[str, Any], files: Sequence[str]) -> None:
    for field in fields(counts):
        if field.type == "int":
            setattr(counts, field.name, content[field.name])
    counts.bad += [Problem(message, _within(where, files), hint) for where, message, hint in content["bad"]]
    for why, places in content["untrainable"].items():
        counts.untrainable[why] = [Place(files[file], row, line) for file, row, line in places]
    counts.thoughtless_places = [Place(files[file], row, line) for file, row, line in content["thoughtless_places"]]


def _without(where: str, files: Sequence[str]) -> list[Any]:
    file = max((file for file in files if where.startswith(file)), key=len)
    return [files.index(file), where[len(file) :]]


def _within(where: Sequence[Any], files: Sequence[str]) -> str:
    return f"{files[where[0]]}{where[1]}"
