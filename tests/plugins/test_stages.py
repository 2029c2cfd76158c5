"""sft from rows on disk to an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcore.api.plan import Run
from ftcore.config.planner import make_plan
from ftcore.runner.run import new_trainer
from ftcore.training.callbacks.progress import read_log


@pytest.fixture
def run(tiny_model_dir: Path, tmp_path: Path) -> Run:
    """Eight conversations over the tiny model, six to train on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = tmp_path / "rows.json"
    rows = [{"instruction": f"what is {number}?", "output": f"it is {'the fox ' * number}"} for number in range(1, 9)]
    file.write_text(json.dumps(rows))
    values: dict[str, Any] = {
        "model_name_or_path": str(tiny_model_dir),
        "dataset": str(file),
        "do_train": True,
        "output_dir": str(tmp_path / "out"),
        "learning_rate": 1e-2,
        "num_train_epochs": 4,
        "per_device_train_batch_size": 2,
        "logging_steps": 3,
        "val_size": 2,
        "eval_strategy": "epoch",
        "save_strategy": "no",
    }
    plan = make_plan(None, values=values)
    model = plan.method.component.apply(plan, AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    run = Run(plan=plan, tokenizer=AutoTokenizer.from_pretrained(tiny_model_dir), model=model, data=None)
    run.data = plan.stage.component.datasets(run)
    return run


def test_sft_learns_the_answers(run: Run, tmp_path: Path) -> None:
    """It is the default, trains on answers alone, evaluates each epoch, and its loss falls."""
    assert (run.plan.stage.full_name, run.plan.stage.component.samples) == ("ftcore:sft", ("Chat",))
    trainer = new_trainer(run)
    output = trainer.train()
    lines = read_log(tmp_path / "out" / "trainer_log.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    evaluations = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert (len(losses), len(evaluations), output.global_step) == (4, 4, 12)
    assert losses == sorted(losses, reverse=True)
    assert evaluations[-1] < evaluations[0] - 0.3


def test_sft_loss_is_over_the_answers_tokens(run: Run) -> None:
    """By hand: the mean over exactly the tokens of what the assistants say, end of turn included."""
    trainer = new_trainer(run)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in (run.data.eval[0], run.data.eval[1]):
            ids = torch.tensor(row["input_ids"].tolist())
            text = run.tokenizer.decode(ids)
            answer = text[text.index("<|im_start|>assistant\n") + len("<|im_start|>assistant\n") :].rstrip("\n")
            length = len(run.tokenizer(answer)["input_ids"])
            losses = torch.nn.functional.cross_entropy(
                run.model.eval()(ids[None]).logits[0, :-1], ids[1:], reduction="none"
            )
            total += losses[-1 - length : -1].sum().item()  # the last token is the line end after the turn
            count += length
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / count, rel=1e-5)


def test_local_launches_here(run: Run) -> None:
    assert run.plan.launcher.component.launch(run.plan, lambda plan: 7 if plan is run.plan else 0) == 7
