"""Rows on disk: whole or not there, from several writers, within their limits."""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from ftcore.training.frozen_layer_cache.row_store import RowStore, make_room
from ftcore.utils.content_store import FROZEN_LAYERS, Entry

ROW = np.arange(100, dtype=np.uint8)
RECORD = 64 + 128


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()[:16]


def filled(folder: Path, *numbers: int) -> RowStore:
    store = RowStore(folder, 1 << 20)
    for number in numbers:
        store.put(key(number), ROW + np.uint8(number))
    return store


def found(store: RowStore, number: int) -> bool:
    row = store.get(key(number), len(ROW))
    return row is not None and bool((row == ROW + np.uint8(number)).all())


def test_several_writers_see_each_other(tmp_path: Path) -> None:
    one, two = filled(tmp_path, 0, 1), filled(tmp_path, 2)
    two.put(key(0), ROW)  # what another wrote meanwhile, written again
    for store in (one, two):
        store.refresh()
        assert [found(store, number) for number in range(4)] == [True, True, True, False]
        assert store.size == 4 * RECORD
    assert len(list(tmp_path.glob("*.rows"))) == 2


def test_a_row_of_another_length_is_none(tmp_path: Path) -> None:
    filled(tmp_path, 0)
    assert RowStore(tmp_path, 1 << 20).get(key(0), 99) is None


@pytest.mark.parametrize("left", [0, 1, 63, 64, 65, 163, 164, RECORD - 1])
def test_a_record_that_was_cut_off_is_not_there(left: int, tmp_path: Path) -> None:
    """A process killed while writing: at any byte, of which the last 28 are padding."""
    filled(tmp_path, 0, 1)
    (file,) = tmp_path.glob("*.rows")
    os.truncate(file, RECORD + left)
    store = filled(tmp_path)
    assert found(store, 0)
    assert found(store, 1) == (left >= 164)
    store.put(key(1), ROW + np.uint8(1))
    store.refresh()
    assert found(store, 1)


def test_every_flipped_bit_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In magic number, length, key, seal and bytes; never a wrong row."""
    filled(tmp_path, 0)
    (file,) = tmp_path.glob("*.rows")
    content = file.read_bytes()
    for place in range(64 + len(ROW)):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << place % 8
        file.write_bytes(spoilt)
        with caplog.at_level(logging.ERROR):
            assert RowStore(tmp_path, 1 << 20).get(key(0), len(ROW)) is None, place


def test_what_is_damaged_is_said_and_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, 0, 1)
    (file,) = tmp_path.glob("*.rows")
    content = bytearray(file.read_bytes())
    content[70] ^= 1
    file.write_bytes(content)
    store = filled(tmp_path)
    assert not found(store, 0)
    assert "the record at byte 64 is damaged and is not used" in caplog.text
    assert found(store, 1)
    store.put(key(0), ROW)
    store.refresh()
    assert found(store, 0)


def test_a_full_store_takes_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = RowStore(tmp_path, 2 * RECORD)
    for number in range(4):
        store.put(key(number), ROW + np.uint8(number))
    store.refresh()
    assert [found(store, number) for number in range(3)] == [True, True, False]
    assert store.size == 2 * RECORD
    assert caplog.text.count("the cache has reached its size limit; further rows are computed in each epoch") == 1


def test_a_full_disk_leaves_whole_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cut off by the limit of a file's size, at which the system writes less than it was told to."""
    store = filled(tmp_path, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (RECORD + 100, hard))
    try:
        store.put(key(1), ROW)
        store.put(key(2), ROW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    for one in (store, filled(tmp_path)):
        one.refresh()
        assert [found(one, number) for number in range(3)] == [True, False, False]
    assert caplog.text.count("No space left on device; further rows are computed in each epoch") == 1


def stored(root: Path, digit: int) -> Entry:
    return Entry(FROZEN_LAYERS, str(digit) * 32, root)


def test_room_is_made_of_what_was_not_used_for_longest(tmp_path: Path) -> None:
    """What is in use stays."""
    entries = [stored(tmp_path, digit) for digit in range(3)]
    for number, entry in enumerate(entries):
        entry.write("rows", None)
        (entry.folder / "a.rows").write_bytes(bytes(10_000))
        os.utime(entry.folder / "manifest.json", (number, number))
    held = entries[1].open()
    os.utime(entries[1].folder / "manifest.json", (1, 1))
    assert make_room(stored(tmp_path, 9), 19_000, 40_000) == ""
    assert [entry.folder.exists() for entry in entries] == [False, True, True]
    assert make_room(stored(tmp_path, 9), 40_000, 40_000) == ""
    assert [entry.folder.exists() for entry in entries] == [False, True, False]
    held.close()
    reason = "it needs 50 kB, and frozen_prefix_size allows 40 kB"
    assert make_room(stored(tmp_path, 9), 50_000, 40_000) == reason


def test_a_disk_without_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("", (), {"free": 1000}))
    assert make_room(stored(tmp_path, 9), 800, 1 << 20) == ""
    assert make_room(stored(tmp_path, 9), 801, 1 << 20) == (
        f"it needs 801 B more, and may use 80% of the 1 kB free in {tmp_path}"
    )
