"""``python tests/training/kill_runs.py --kills 100``: runs that are killed at random moments end in the same bytes.

Of each case one run is let end; another is killed by SIGKILL, at moments uniform over that run's time, and started
again with the same command until so many kills are done; then it is let end. Every third kill waits for the next save
to begin. Prints a line of JSON per case; exit status 1 where a bit differs, a run fails, or something half written is
left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from real_runs import CASES, differences, ended, forked, options_of, write_inputs

_STAGED = ".tmp-[0-9]*-[0-9]*"
"""A checkpoint that is being written; other files are staged under names with letters."""


def kill_case(case: str, folder: Path, kills: int, dice: random.Random) -> dict[str, Any]:
    """One case; ``problems`` is empty where all is well."""
    whole, killed = (options_of(case, folder, folder / f"{case}-{name}") for name in ("whole", "killed"))
    began = time.monotonic()
    status = ended(forked(whole))
    length = time.monotonic() - began
    output = Path(killed["output_dir"])
    found: dict[str, Any] = {"case": case, "seconds": round(length, 2), "kills": 0, "while_saving": 0, "finished": 0}
    found |= {"checkpoints_seen": 0, "problems": [f"the whole run ended with {status}"] * bool(status)}
    while found["kills"] < kills and not found["problems"]:
        saving = output if found["kills"] % 3 == 2 else None
        status, took = _killed(forked(killed), dice.uniform(0, length), saving, dice.uniform(0, 0.02))
        if status == 0 or (took > length / 2 and not list(output.glob("checkpoint-*"))):
            length = took * (1 if status == 0 else 1.5)  # the machine has become faster or slower
        found["kills"] += status == -signal.SIGKILL
        found["finished"] += status == 0
        found["problems"] += [f"a run ended with {status}"] * (status not in (0, -signal.SIGKILL))
        found["while_saving"] += bool(list(output.glob(_STAGED)))
        found["checkpoints_seen"] += bool(list(output.glob("checkpoint-*")))
        if status == 0 and not found["problems"]:  # it came to its end: begin anew, so that every kill meets a run
            found["problems"] += differences(Path(whole["output_dir"]), output)
            shutil.rmtree(output)
    if not found["problems"]:
        status = ended(forked(killed))
        found["problems"] += [f"the last run ended with {status}"] * bool(status)
        found["problems"] += differences(Path(whole["output_dir"]), output)
    return found


def _killed(child: int, after: float, saving: Path | None, into: float) -> tuple[int, float]:
    """Kills a process, unless it ends before; its status and how long it ran.

    Args:
        child: the process.
        after: so many seconds; and then,
        saving: where it is given, when a checkpoint is being written there,
        into: and so many seconds are spent on that.
    """
    began = time.monotonic()
    while (took := time.monotonic() - began) < after or (saving and not list(saving.glob(_STAGED))):
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status), took
        time.sleep(0.002)
    time.sleep(into if saving else 0)
    os.kill(child, signal.SIGKILL)
    return ended(child), took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="in all, shared by the cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", action="append", choices=CASES, help="repeatable; all unless given")
    parser.add_argument("--folder", type=Path, help="kept; a temporary one unless given")
    arguments = parser.parse_args()
    cases, dice = arguments.case or list(CASES), random.Random(arguments.seed)
    # a kill leaves the page cache as it is, and 400 fsyncs a run take 6 s on a busy disk
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["FT_CACHE"] = str(folder / "cache")
        write_inputs(folder)
        failed = False
        for number, case in enumerate(cases):
            share = arguments.kills * (number + 1) // len(cases) - arguments.kills * number // len(cases)
            found = kill_case(case, folder, share, dice)
            print(json.dumps(found), flush=True)
            failed |= bool(found["problems"])
            if found["problems"]:
                said = folder / f"{case}-killed.txt"
                print((said if said.exists() else folder / f"{case}-whole.txt").read_text()[-3000:], file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
