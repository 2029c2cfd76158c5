"""kill -9 at random moments, and on to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("kill_runs.py")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_random_moments_it_ends_in_the_same_bytes(warm: Any) -> None:
    """Every kill leaves a folder that the same command goes on from, without help; nothing half written is left.

    One kill for each case here; ``make kills`` does a hundred.
    """
    (ran,) = warm((SCRIPT, ["--kills", "12", "--seed", "3"], {}))
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [case["kills"] for case in found] == [1] * 12
    assert sum(case["checkpoints_seen"] for case in found) >= 2
