"""File systems without locks: said, with the option that goes without, wherever ft locks."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ft_plugins
import ftcore
from ftcore.data.row_stats import RowCounts
from ftcore.data.storage.cache import Store
from ftcore.errors import RunError
from ftcore.inference.resumable_output import open_partial
from ftcore.training.frozen_layer_cache.row_store import make_room
from ftcore.utils.content_store import FROZEN_LAYERS, Entry
from ftcore.utils.file_lock import is_held, locked, take


def hold(folder: Path, *, locking: bool) -> None:
    with locked(folder, locking=locking):
        pass


def begin(folder: Path, *, locking: bool) -> None:
    with open_partial(folder / "out.jsonl", {}, 1, 1, locking=locking):
        pass


def keep(folder: Path, *, locking: bool) -> None:
    Store(folder, locking=locking).table("rows", {"a": "b"}, [], lambda writer, counts: None, RowCounts(name="rows"))


def use(folder: Path, *, locking: bool) -> None:
    entry = Entry(FROZEN_LAYERS, "0" * 32, folder, locking)
    with entry.making():
        entry.write("rows", None)


PLACES = {hold: "", begin: "/out.jsonl.partial", keep: "/tokens", use: "/frozen-layers"}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_no_locks_are_said_with_what_goes_without(
    place: Callable, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(RunError) as error:
        place(tmp_path, locking=True)
    assert str(error.value) == (
        f"the file system of {tmp_path}{PLACES[place]} has no locks ({os.strerror(number)}); "
        "write use_file_locking=false, and make sure that no second process writes there"
    )
    place(tmp_path, locking=False)


def test_every_lock_is_taken_in_one_place() -> None:
    folders = [Path(ftcore.__file__).parent, Path(ft_plugins.__file__).parent]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    assert len(files) > 200
    assert [file.name for file in files if "fcntl" in file.read_text(encoding="utf-8")] == ["file_lock.py"]


def test_without_locks_no_other_folder_is_taken_for_unused(tmp_path: Path) -> None:
    other = Entry(FROZEN_LAYERS, "0" * 32, tmp_path)
    other.write("rows", None)
    (other.folder / "a.rows").write_bytes(bytes(900))
    make_room(Entry(FROZEN_LAYERS, "1" * 32, tmp_path, locking=False), 900, 1000)
    assert (other.folder / "a.rows").exists()
    make_room(Entry(FROZEN_LAYERS, "1" * 32, tmp_path), 900, 1000)
    assert not other.folder.exists()


def test_held_and_free_and_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_held(tmp_path) is None
    with locked(tmp_path):
        assert is_held(tmp_path) is True
        with pytest.raises(RunError, match=f"another run is writing to {tmp_path}; wait until it ends"):
            hold(tmp_path, locking=True)
    assert is_held(tmp_path) is False

    def broken(*_: Any) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", broken)
    assert is_held(tmp_path) is None
    with (tmp_path / "file").open("w") as stream, pytest.raises(RunError) as error:
        take(stream, tmp_path)
    assert str(error.value) == f"{tmp_path} cannot be locked: Bad file descriptor"
