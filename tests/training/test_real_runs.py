"""Whole runs that are stopped, and that crash while they save: in forks of one process, by the scripts beside this."""

from __future__ import annotations

import json
import os
import re
import shutil
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
def script(memory: Path, warm: Any) -> Any:
    """``script(name, *words)``: runs it and returns its lines of JSON."""

    def run(name: str, *words: str) -> list[dict[str, Any]]:
        environment = {"FT_CACHE": str(memory / "cache")}
        (done,) = warm((Path(__file__).with_name(name), [str(memory), *words], environment))
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
    assert len(found) == 11
    for stop in found:
        signal, place, times = stop["stop"].split("-")
        assert stop["status"] == {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}[signal], stop
        assert stop["went_on"] is (times == "1"), stop
        assert stop["again"] == 0, stop
        assert stop["differences"] == [], stop
        if times == "1":
            said = "Ctrl-C" if signal == "SIGINT" else signal
            assert stop["said"].startswith(f"stopped by {said} at step "), stop
            assert stop["whole"], stop
        else:
            assert stop["whole"] == ["checkpoint-1", "checkpoint-2"][: 2 if place == "save" else 1], stop


def test_every_end_is_recorded_and_a_broken_output_ends_nothing(script: Any) -> None:
    """`ENDS` of the script: what ft_run.json says, what is left, and that the log has what could not be read."""
    found = {run["end"]: run for run in script("ending_runs.py")}
    finished = (0, "finished", None, None, True)
    stopped = {"SIGTERM": (143, "SIGTERM"), "Ctrl-C": (130, "Ctrl-C"), "SIGHUP": (129, "SIGHUP")}
    expected = {
        "whole": finished,
        "SIGHUP that nohup ignores": finished,
        **{
            f"{name} in a step": (status, "stopped", "training", f"stopped by {shown} at step 2; ", False)
            for name, (status, shown) in stopped.items()
        },
        "SIGTERM twice": (143, "stopped", "training", "a second SIGTERM", False),
        "SIGTERM while loading": (143, "stopped", "loading", "stopped by SIGTERM while loading", False),
        "SIGHUP in the last evaluation": (129, "stopped", "evaluating", "stopped by SIGHUP while evaluating; ", True),
        "SIGKILL in a step": (-9, "running", "training", None, False),
        "an exception": (99, "failed", "training", "ZeroDivisionError: boom", False),
        "no memory while loading": (99, "failed", "loading", "MemoryError", False),
        "a full disk": (1, "failed", "saving", "checkpoint-1 could not be written to ", False),
    }
    broken = {"a closed pipe", "a terminal that is gone", "closed descriptors", "a full device"}
    assert found.keys() == expected.keys() | broken
    for name, run in found.items():
        status, state, phase, cause, trained = expected.get(name, finished)
        assert (run["exit"], run["status"], run["phase"], run["trained"]) == (status, state, phase, trained), run
        assert run["cause"] == cause if cause is None else run["cause"].startswith(cause), run
        if name in broken:
            assert run["said"] == [], run
        elif state != "running" and name != "SIGTERM twice":
            assert run["log"][-1].removeprefix("error: ") == run["said"][0], run
    killed = found.pop("SIGKILL in a step")
    (line,) = killed["next"]
    assert " ended without a record while training: process " in line
    assert not any(run["next"] for run in found.values())
    assert killed["whole"] == ["checkpoint-1"]
    clocks = r"throughput \S+|eval_\w+_per_second +\S+|eval_runtime +\S+|train_\w+ +\S+|/\S+|----.*"
    said = {name: [re.sub(clocks, "", line) for line in run["log"]] for name, run in found.items()}
    for name in broken:
        assert said[name] == said["whole"], name


def test_stopped_after_every_step_every_method_ends_in_the_same_bytes(script: Any) -> None:
    """Weights, optimizer, random states and logs, for every method, packed rows and every stage."""
    cases = ["lora", "full", "freeze", "qlora", "packing", "dpo", "rm", "kto", "pt", "ppo"]
    found = script("signal_runs.py", *cases)
    steps = {"kto": 6, "pt": 8, "ppo": 4}
    stops = {case: [f"checkpoint-{step}" for step in range(1, steps.get(case, 6) + 1)] for case in cases}
    assert found == [{"case": case, "stops": stops[case], "status": 0, "differences": []} for case in cases]
