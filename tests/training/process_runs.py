"""``python process_runs.py SPEC``: trains once. SPEC is a JSON file: ``{"options": {...}, "folder": ...}``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from ft_plugins.stages.sft.objective import NextToken
from ftcore.api.plan import Run
from ftcore.config.planner import make_plan
from ftcore.runner.run import destroy_process_group
from ftcore.training.trainer import Trainer


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
    trainer = Trainer(Run(plan=plan, tokenizer=tokenizer, model=model, data=None), NextToken(), train=Tokens(13))
    trainer.train()
    trainer.save_model()
    destroy_process_group()


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    train(spec["options"], Path(spec["folder"]))


if __name__ == "__main__":
    main()
