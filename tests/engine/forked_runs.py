"""Imports everything once and forks runs, which are killed: a fork costs milliseconds, an import ten seconds.

``python forked_runs.py SPEC``, a JSON file: ``{"options": {...}, "folder": ..., "kills": n, "seed": n}``. It first lets
one run end in ``folder/whole``, then kills runs in ``folder/killed`` at random moments, n times, and lets one end.
Prints a JSON object: how often a killed run had a checkpoint, and how often it died while writing one.
Without ``kills`` it trains once, here.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftcore.engine.trainer import FtTrainer
from ftcore.planning import make_plan
from ftcore.run import Run, leave_group


class Tokens:
    """Random rows."""

    def __init__(self, rows: int) -> None:
        source = np.random.default_rng(0)
        self.rows = [source.integers(3, 400, int(source.integers(3, 30))).astype(np.int32) for _ in range(rows)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.rows[index]
        return {"input_ids": ids, "weights": np.ones(len(ids), np.float32), "index": index}


def train(options: dict[str, Any], folder: Path) -> None:
    """One run from the files on disk, as a new process does it."""
    plan = make_plan(None, values=options | {"output_dir": str(folder)})
    model = AutoModelForCausalLM.from_pretrained(options["model_name_or_path"])
    model = plan.method.component.apply(plan, model)
    tokenizer = AutoTokenizer.from_pretrained(options["model_name_or_path"])
    trainer = FtTrainer(Run(plan=plan, tokenizer=tokenizer, model=model, data=None), train=Tokens(13))
    trainer.train()
    trainer.save_model()
    leave_group()


def forked(options: dict[str, Any], folder: Path) -> int:
    """The process number of a run in a fork."""
    child = os.fork()
    if child:
        return child
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    try:
        train(options, folder)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    if "kills" not in spec:
        train(spec["options"], Path(spec["folder"]))
        return
    folder, options, dice = Path(spec["folder"]), spec["options"], random.Random(spec["seed"])
    torch.set_num_threads(1)
    began = time.monotonic()
    assert os.waitpid(forked(options, folder / "whole"), 0)[1] == 0
    length = time.monotonic() - began
    found = {"seconds": length, "with_checkpoint": 0, "while_saving": 0, "ended": 0}
    for _ in range(spec["kills"]):
        child = forked(options, folder / "killed")
        time.sleep(dice.uniform(0, length))
        os.kill(child, signal.SIGKILL)
        found["ended"] += os.waitpid(child, 0)[1] == 0
        found["with_checkpoint"] += bool(list((folder / "killed").glob("checkpoint-*")))
        found["while_saving"] += bool(list((folder / "killed").glob(".tmp-*")))
    assert os.waitpid(forked(options, folder / "killed"), 0)[1] == 0
    print(json.dumps(found))


if __name__ == "__main__":
    main()
