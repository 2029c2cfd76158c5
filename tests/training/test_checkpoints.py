"""Checkpoints on disk: whole or not there, damage named, pruning, what must agree."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftcore.errors import UsageError
from ftcore.training.checkpointing import directory
from ftcore.training.checkpointing.directory import (
    DamagedError,
    RunFingerprint,
    commit,
    find_resumable,
    prune,
    stage,
    verify,
)
from ftcore.training.checkpointing.safe_serialization import load_pytree, save_pytree
from ftcore.training.checkpointing.state import random_state, set_random_state

SETTING = RunFingerprint({"learning_rate": "0.1", "training rows": "3 rows, abc"})


def make(folder: Path, step: int, *, setting: RunFingerprint = SETTING, resumable: bool = True) -> Path:
    staged = stage(folder, step)
    (staged / "weights.bin").write_bytes(bytes(range(256)) * 4 + str(step).encode())
    (staged / "deeper").mkdir()
    (staged / "deeper" / "state.json").write_text("{}")
    return commit(staged, step, setting, resumable=resumable, versions={"torch": "1"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_committed_checkpoint_is_whole(tmp_path: Path) -> None:
    folder = make(tmp_path, 7)
    manifest = verify(folder)
    assert names(tmp_path) == ["checkpoint-7"]
    assert names(folder) == ["MANIFEST.json", "deeper", "weights.bin"]
    assert (manifest.step, manifest.setting, manifest.resumable) == (7, SETTING, True)
    assert {name: size for name, (size, _) in manifest.files.items()} == {"weights.bin": 1025, "deeper/state.json": 2}
    content = json.loads((folder / "MANIFEST.json").read_text())
    assert content["format"] == 1
    assert content["plan"] == SETTING.digest


@pytest.mark.parametrize("file", ["weights.bin", "deeper/state.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_damage_is_found_and_the_one_before_is_taken(
    file: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earlier, later = make(tmp_path, 5), make(tmp_path, 10)
    spoil(later / file, damage)
    with pytest.raises(DamagedError, match=file):
        verify(later)
    assert find_resumable(tmp_path, SETTING) == earlier
    assert file in caplog.text
    assert "the checkpoint before it is used" in caplog.text


def spoil(file: Path, damage: str) -> None:
    content = bytearray(file.read_bytes())
    if damage == "delete":
        file.unlink()
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[:-1] if damage == "truncate" else b"")


@pytest.mark.slow
def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Each bit of each file, the manifest's too."""
    folder = make(tmp_path, 5)
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        content = file.read_bytes()
        for bit in range(len(content) * 8):
            spoilt = bytearray(content)
            spoilt[bit // 8] ^= 1 << bit % 8
            file.write_bytes(spoilt)
            with pytest.raises(DamagedError):
                verify(folder)
        file.write_bytes(content)
    verify(folder)


def test_a_half_written_one_is_never_taken(tmp_path: Path) -> None:
    """Neither a staged folder nor a checkpoint without a manifest; `clean` removes the staged one."""
    whole = make(tmp_path, 5)
    (stage(tmp_path, 10) / "weights.bin").write_bytes(b"half")
    (tmp_path / "checkpoint-9").mkdir()
    assert find_resumable(tmp_path, SETTING) == whole
    directory.clean(tmp_path)
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-9"]


@pytest.mark.parametrize("call", range(9))
def test_a_crash_at_any_point_of_a_save_leaves_the_one_before(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error at the n-th fsync or rename: what is found after it is the old or the new one, whole."""
    earlier = make(tmp_path, 5)
    counter = iter(range(100))

    def crash(real: Any) -> Any:
        def wrapped(*arguments: Any) -> Any:
            if next(counter) == call:
                raise OSError(errno.ENOSPC, "no space left on device")
            return real(*arguments)

        return wrapped

    monkeypatch.setattr(os, "fsync", crash(os.fsync))
    monkeypatch.setattr(Path, "rename", crash(Path.rename))
    try:
        later = make(tmp_path, 10)
    except OSError:
        later = tmp_path / "checkpoint-10"
    monkeypatch.undo()
    found = find_resumable(tmp_path, SETTING)
    assert found is not None
    assert found in (earlier, later)
    verify(found)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    spoil(make(tmp_path, 5) / "weights.bin", "flip")
    verify(make(tmp_path, 5))
    assert names(tmp_path) == ["checkpoint-5"]


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [1, 2, 3, 10]),
        (1, None, [10]),
        (2, None, [3, 10]),
        (1, 2, [2, 10]),
        (2, 2, [2, 10]),
        (3, 2, [2, 3, 10]),
        (9, 1, [1, 2, 3, 10]),
    ],
)
def test_pruning(limit: int | None, best: int | None, kept: list[int], tmp_path: Path) -> None:
    """The newest by step, not by name or clock; the best and the last always; a damaged one counts for nothing."""
    for step in (10, 1, 3, 2):
        make(tmp_path, step)
    spoil(make(tmp_path, 11) / "MANIFEST.json", "flip")
    prune(tmp_path, limit, tmp_path / f"checkpoint-{best}" if best else None)
    left = [int(path.name.split("-")[1]) for path in directory.checkpoints(tmp_path)]
    assert left == [*kept, 11]


def test_another_runs_checkpoint_is_refused_with_every_difference(tmp_path: Path) -> None:
    make(tmp_path, 5)
    now = RunFingerprint({"learning_rate": "0.2", "training rows": "4 rows, abd", "seed": "1"})
    with pytest.raises(UsageError) as caught:
        find_resumable(tmp_path, now)
    assert [problem.message for problem in caught.value.problems] == [
        f"this run cannot resume from {tmp_path / 'checkpoint-5'}",
        "learning_rate was 0.1, now it is 0.2",
        "seed was not compared, now it is 1",
        "training rows was 3 rows, abc, now it is 4 rows, abd",
    ]


def test_weights_alone_are_not_resumed_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, 5, resumable=False)
    assert find_resumable(tmp_path, SETTING) is None
    assert "holds weights only" in caplog.text


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.integers() | st.text() | st.floats(allow_nan=False), inner)
    ),
    max_leaves=12,
)


@given(tree=TREES)
def test_trees_come_back_exactly(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Types too: a tuple stays a tuple, an integer key an integer, 1.0 a float."""
    folder = tmp_path_factory.mktemp("tree")
    save_pytree(folder, "x", tree)
    assert repr(load_pytree(folder, "x")) == repr(tree)


def test_tensors_and_odd_floats_come_back_exactly(tmp_path: Path) -> None:
    tensors = {
        1: torch.randn(3, 2, dtype=torch.bfloat16).T,
        "u": torch.arange(4, dtype=torch.uint8),
        (1, 2): torch.tensor(5),
    }
    save_pytree(tmp_path, "x", {"t": tensors, "f": [math.inf, -0.0, 5e-324, 0.1 + 0.2]})
    found = load_pytree(tmp_path, "x")
    assert repr(found["f"]) == "[inf, -0.0, 5e-324, 0.30000000000000004]"
    assert found["t"].keys() == tensors.keys()
    assert all(
        torch.equal(found["t"][key], tensor) and found["t"][key].dtype == tensor.dtype
        for key, tensor in tensors.items()
    )


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a set cannot be saved"):
        save_pytree(tmp_path, "x", {"a": {1}})


def test_random_states_come_back(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draw() -> list[Any]:
        return [random.random(), random.gauss(0, 1), np.random.standard_normal(), torch.randn(3).tolist()]

    draw()
    save_pytree(tmp_path, "r", random_state())
    first = draw()
    draw()
    set_random_state(load_pytree(tmp_path, "r"))
    assert draw() == first


def test_another_versions_checkpoint_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = make(tmp_path, 5)
    monkeypatch.setattr(directory, "FORMAT", 2)
    make(tmp_path, 10)
    monkeypatch.undo()
    assert find_resumable(tmp_path, SETTING) == earlier
    assert "MANIFEST.json has format 2, this version reads 1" in caplog.text


def test_clocks_play_no_part_in_pruning(tmp_path: Path) -> None:
    """Equal and reversed times of change."""
    for step in (1, 2, 3, 4):
        os.utime(make(tmp_path, step), (1000, 1000))
    os.utime(tmp_path / "checkpoint-1", (9000, 9000))
    prune(tmp_path, 2, tmp_path / "checkpoint-2", last=4)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_those_of_an_earlier_run_are_pruned_first(tmp_path: Path) -> None:
    """Steps beyond the newest one: a run that began anew has not come there yet."""
    for step in (3, 4, 100, 200):
        make(tmp_path, step, resumable=step < 100)
    prune(tmp_path, 3, None, last=4)
    assert names(tmp_path) == ["checkpoint-200", "checkpoint-3", "checkpoint-4"]
    prune(tmp_path, 1, None, last=4)
    assert names(tmp_path) == ["checkpoint-4"]


@pytest.mark.slow
def test_there_is_a_whole_one_at_any_time(tmp_path: Path) -> None:
    """A watcher looks while checkpoints come and go, one of them kept."""
    make(tmp_path, 1)
    over, found = threading.Event(), []

    def watch() -> None:
        while not over.is_set():
            found.append(find_resumable(tmp_path, SETTING))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for step in range(2, 80):
        make(tmp_path, step)
        prune(tmp_path, 1, None, last=step)
    over.set()
    watcher.join()
    assert len(found) > 10
    assert None not in found


def test_what_rows_are_made_from_is_named_only_where_rows_changed(tmp_path: Path) -> None:
    def setting(rows: str, **causes: str) -> RunFingerprint:
        return RunFingerprint({"training rows": rows}, {"training rows": causes})

    make(tmp_path, 5, setting=setting("3 rows", cutoff_len="9", file="a"))
    assert find_resumable(tmp_path, setting("3 rows", cutoff_len="8", file="a"))
    with pytest.raises(UsageError) as caught:
        find_resumable(tmp_path, setting("4 rows", cutoff_len="8", file="a", max_samples="4"))
    assert caught.value.problems[1].message == (
        "training rows was 3 rows, now it is 4 rows (cutoff_len was 9, now it is 8; max_samples was unset, now it is 4)"
    )


def test_a_forced_resume_names_what_it_overlooks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make(tmp_path, 5)
    assert find_resumable(tmp_path, RunFingerprint({"learning_rate": "1"}), force=True) == folder
    assert f"resuming from {folder} because of --force: learning_rate was 0.1, now it is 1" in caplog.text
