"""Whole runs that are stopped, and that crash while they save: in forks of one process, by the scripts beside this."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: a run of ten checkpoints waits seconds for a disk."""
    there = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=there if os.access(there, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def script(memory: Path) -> Any:
    """``script(name, *words)``: runs it and returns its lines of JSON."""

    def run(name: str, *words: str) -> list[dict[str, Any]]:
        command = [sys.executable, str(Path(__file__).with_name(name)), str(memory), *words]
        environment = os.environ | {"FT_CACHE": str(memory / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_a_crash_at_any_point_of_a_save_leaves_a_whole_checkpoint(script: Any) -> None:
    """Killed before each thing that a save does to the disk, and in the midst of a file; or told that it is full."""
    (found,) = script("crash_points.py")
    assert found["problems"] == []
    assert found["deaths"] == found["events"] > 40
    assert found["deaths_by_size"] == found["full"] == 8
    assert found["old"] > 20
    assert found["new"] > 5


def test_signals_in_a_step_a_save_and_an_evaluation(script: Any) -> None:
    """128 + n, a whole checkpoint, and on to the same bytes; a second signal ends the run at once."""
    found = script("signal_runs.py")
    assert len(found) == 9
    for stop in found:
        signal, place, times = stop["stop"].split("-")
        assert stop["status"] == {"SIGTERM": 143, "SIGINT": 130}[signal], stop
        assert stop["again"] == 0, stop
        assert stop["differences"] == [], stop
        if times == "1":
            said = "Ctrl-C" if signal == "SIGINT" else signal
            assert stop["said"].startswith(f"stopped by {said} at step "), stop
            assert stop["whole"], stop
        else:
            assert stop["seconds"] < 2, stop
            assert stop["whole"] == ["checkpoint-1", "checkpoint-2"][: 2 if place == "save" else 1], stop


def test_stopped_after_every_step_every_method_ends_in_the_same_bytes(script: Any) -> None:
    """Weights, optimizer, random states and logs, for every method, packed rows and every stage."""
    cases = ["lora", "full", "freeze", "qlora", "packing", "dpo", "rm", "kto", "pt", "ppo"]
    found = script("signal_runs.py", *cases)
    steps = {"kto": 6, "pt": 8, "ppo": 4}
    stops = {case: [f"checkpoint-{step}" for step in range(1, steps.get(case, 6) + 1)] for case in cases}
    assert found == [{"case": case, "stops": stops[case], "status": 0, "differences": []} for case in cases]
