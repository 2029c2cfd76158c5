"""ft generate killed with SIGKILL at its worst moments, and stopped by SIGTERM and Ctrl-C: on to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("generate_kills.py")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_or_stopped_it_ends_in_the_same_bytes(warm: Any, tmp_path: Path) -> None:
    """Sampled with a seed, in windows of eight: what a second process adds is what the first would have written."""
    (ran,) = warm((SCRIPT, [str(tmp_path)], {}))
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    found = {(case["place"], case["signal"]): case for case in map(json.loads, ran.stdout.splitlines())}
    kept = {"in an answer": 8, "before a window is written": 8, "in a line": 8, "after a window": 16}
    kept |= {"before the move": 20, "after the move": 20}
    assert {case: found[case]["told"] for case in found} == {
        (place, number): [f"resuming after {kept[place]} of 20 answers"] for place, number in found
    }
    statuses = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}
    for (place, number), case in found.items():
        assert case["status"] == statuses[number], case
        assert case["old"] is (place != "after the move")
        assert (case["again"], case["same"], case["left"]) == (0, True, []), case
    names = {"SIGTERM": "SIGTERM", "SIGINT": "Ctrl-C"}
    for number, name in names.items():
        said = found["in an answer", number]["said"]
        assert said == [f"error: stopped by {name} after 8 of 20 answers; the same command resumes"]
