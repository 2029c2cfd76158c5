"""Disks that are full or may not be written to."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftcore.config.planner import make_plan
from ftcore.errors import RunError
from ftcore.runner.run import run
from ftcore.training.checkpointing import directory


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """``small_disk("2m")``: a file system of its own; called again, its options change. Needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(options: str) -> Path:
        again = ["-o", f"remount,{options}"] if mounted else ["-o", options]
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *again, "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        mounted.append(options)
        return place

    if os.geteuid():
        pytest.skip("mounting needs root")
    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # weights that were loaded are mapped still


@pytest.fixture
def options(tmp_path: Path, tiny_model_dir: Path, rows_file: Path) -> dict[str, Any]:
    rows = [{"instruction": f"question {number}", "output": f"answer {number}"} for number in range(8)]
    rows_file.write_text(json.dumps(rows))
    found = {"model_name_or_path": str(tiny_model_dir), "do_train": True, "dataset": str(rows_file), "max_steps": 4}
    found |= {"finetuning_type": "full", "save_steps": 1, "per_device_train_batch_size": 2, "template": "chatml"}
    return found | {"output_dir": str(tmp_path / "whole")}


def test_room_is_asked_for_before_the_first_step(
    options: dict[str, Any], small_disk: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """143,936 or so float32 weights, twice, and two moments."""
    output = small_disk("size=1m") / "out"
    with pytest.raises(RunError) as caught:
        run(make_plan(None, values=options | {"output_dir": str(output)}))
    needed = 127_552 * 4 * 2 + 127_552 * 8
    start = f"{output} needs {needed:,} bytes for a checkpoint and what was trained, and "
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(" are free")
    assert "step 1/4" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_disk_that_fills_up_costs_no_checkpoint(options: dict[str, Any], small_disk: Callable) -> None:
    """One line with the bytes; the last whole checkpoint stays; with room the same command ends in the same bytes."""
    run(make_plan(None, values=options))
    output = small_disk("size=4m") / "out"
    values = options | {"output_dir": str(output)}
    with pytest.raises(RunError) as caught:
        run(make_plan(None, values=values))
    assert f"could not be written to {output}: " in str(caught.value)
    assert "o space left on device" in str(caught.value)
    assert "; it needs about 1,530,624 bytes, " in str(caught.value)
    assert "\n" not in str(caught.value)
    kept = directory.checkpoints(output)
    assert kept
    assert [directory.verify(path).resumable for path in kept] == [True] * len(kept)
    assert list(output.glob(".tmp-*")) == []
    small_disk("size=20m")
    run(make_plan(None, values=values))
    whole = Path(options["output_dir"])
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_folder_that_may_not_be_written_to(options: dict[str, Any], small_disk: Callable) -> None:
    small_disk("size=1m")
    output = small_disk("ro") / "out"
    with pytest.raises(RunError, match=r"output_dir .* is not writable: Read-only file system"):
        run(make_plan(None, values=options | {"output_dir": str(output)}))
