"""``python memory_runs.py MODEL FOLDER MEGABYTES ROWS PASS``: trains with so much more memory than the model takes.

Prints how many rows memory sufficed for and the sum of the weights' norms; exits with 1 and the message where the run
ends with an error.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ft_plugins.stages.sft.objective import NextToken
from ftcore.api.plan import Run
from ftcore.config.planner import make_plan
from ftcore.errors import RunError
from ftcore.training.trainer import Trainer


class Tokens:
    """Rows of 500 random tokens."""

    def __init__(self, rows: int) -> None:
        source = np.random.default_rng(0)
        self.rows = [source.integers(3, 400, 500).astype(np.int32) for _ in range(rows)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.rows[index]
        return {"input_ids": ids, "weights": np.ones(len(ids), np.float32), "index": index}


def main() -> None:
    model_dir, folder, megabytes, rows = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    tokens = int(sys.argv[5])
    torch.set_num_threads(1)
    values = {"model_name_or_path": model_dir, "output_dir": folder, "per_device_train_batch_size": rows}
    values |= {"finetuning_type": "full", "max_steps": 2, "save_strategy": "no", "cutoff_len": 500}
    values |= {"tokens_per_pass": tokens or False}
    plan = make_plan(None, values=values)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    run = Run(plan=plan, tokenizer=tokenizer, model=plan.method.component.apply(plan, model), data=None)
    trainer = Trainer(run, NextToken(), train=Tokens(rows))
    short = {name: value[:10] if name != "index" else value for name, value in trainer.train_dataset[0].items()}
    warm = trainer.data_collator([short])
    trainer.objective.loss_sum(warm).backward()  # what libraries set up at their first use is there
    trainer.model.zero_grad()
    if megabytes >= 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        trainer.train()
    except RunError as error:
        print(error)
        sys.exit(1)
    print(
        "rows at a time",
        trainer.guard.max_rows,
        "norm",
        sum(float(t.norm()) for t in trainer.model.state_dict().values()),
    )


if __name__ == "__main__":
    main()
