"""Runs of stages over the tiny model, and what plain transformers makes of their rows."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from ftcore.api.plan import Run
from ftcore.api.registry import Plugins
from ftcore.config.planner import make_plan
from ftcore.runner.run import new_trainer
from ftcore.training.callbacks.progress import read_log
from ftcore.training.callbacks.signals import InterruptedRunError
from ftcore.training.checkpointing import directory

WORDS = "the quick brown fox jumps over lazy dog what is your name my model hello world one two three four".split()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sentence(random: np.random.Generator, longest: int = 12) -> str:
    return " ".join(random.choice(WORDS, random.integers(1, longest)))


def pair_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Preferences of which chosen and rejected differ in length."""
    random = np.random.default_rng(seed)
    return [
        {"instruction": f"{number} {sentence(random)}?", "chosen": sentence(random), "rejected": sentence(random)}
        for number in range(count)
    ]


def feedback_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Marked answers, two to a prompt, about as many good ones as bad ones."""
    random = np.random.default_rng(seed)
    return [
        {"instruction": f"{number // 2} what?", "output": sentence(random), "kto_tag": bool(random.random() < 0.5)}
        for number in range(count)
    ]


def text_rows(count: int, seed: int = 0, longest: int = 30) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [{"text": sentence(random, longest)} for _ in range(count)]


def prompt_rows(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"question {number}"} for number in range(count)]


@pytest.fixture
def rows_of() -> Mapping[str, Callable[..., list[dict[str, Any]]]]:
    """``rows_of["dpo"](count)``: rows of the kind that a stage eats."""
    return {"dpo": pair_rows, "rm": pair_rows, "kto": feedback_rows, "pt": text_rows, "ppo": prompt_rows}


@pytest.fixture
def stage_run(tiny_model_dir: Path, tmp_path: Path, built_in: Plugins, rows_of: Any) -> Callable[..., Run]:
    """``stage_run("dpo", 8, dtype=..., **options)``: a run with data and model, over so many rows, or these."""

    def make(stage: str, rows: Any = 8, dtype: torch.dtype = torch.float32, **options: Any) -> Run:
        content = rows_of[stage](rows) if isinstance(rows, int) else rows
        file = tmp_path / f"{stage}.json"
        file.write_text(json.dumps(content))
        values = {"model_name_or_path": str(tiny_model_dir), "stage": stage, "dataset": str(file), "do_train": True}
        values |= {"output_dir": str(tmp_path / "out"), "save_strategy": "no", "logging_steps": 1, "max_steps": 2}
        values |= {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "disable_shuffling": True}
        plan = make_plan(None, plugins=built_in, values=values | options)
        run = Run(plan=plan, tokenizer=plan.plugins.hook.ft_load_tokenizer(plan=plan))
        run.data = plan.stage.component.datasets(run)
        torch.manual_seed(plan.training.seed)
        kwargs = {"dtype": torch.float32} | plan.method.component.load_kwargs(plan)
        model = plan.plugins.hook.ft_load_model(plan=plan, kwargs=kwargs)
        run.model = plan.method.component.apply(plan, model).to(dtype)
        return run

    return make


@pytest.fixture
def trainer_of(stage_run: Any) -> Callable[..., Any]:
    """``trainer_of("dpo", 8, **options)``: the stage's trainer over such a run."""

    def make(*args: Any, **options: Any) -> Any:
        run = stage_run(*args, **options)
        return new_trainer(run)

    return make


@pytest.fixture
def scorer_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A full reward model over the tiny model."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    folder = tmp_path / "scorer"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


@pytest.fixture
def ppo(trainer_of: Any, scorer_dir: Path) -> Callable[..., Any]:
    """``ppo(rows, **options)``: the stage's trainer, scored by `scorer_dir`; six tokens are answered at most."""

    def make(rows: Any = 8, **options: Any) -> Any:
        base = {"reward_model": str(scorer_dir), "reward_model_type": "full", "max_new_tokens": 6}
        return trainer_of("ppo", rows, **(base | {"learning_rate": 1e-3} | options))

    return make


@pytest.fixture
def moved() -> Callable[[Any], Any]:
    """``moved(model)``: what is trained is changed at random, so that it is no longer what it was at the start."""

    def move(model: Any, size: float = 0.02) -> Any:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.requires_grad:
                    tensor += size * torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
        return model

    return move


@pytest.fixture
def plain_logps() -> Callable[..., torch.Tensor]:
    """``plain_logps(model, prompt, answer)``: log-probability of each of the answer's tokens, by the full logits."""

    def logps(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([[*map(int, prompt), *map(int, answer)]])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        found = logits.gather(1, ids[0, 1:, None])[:, 0]
        return found[len(prompt) - 1 :]

    return logps


@pytest.fixture
def gradient() -> Callable[..., tuple[float, float]]:
    """``gradient(model, loss)``: the loss, and the norm of its gradient over all that is trained."""

    def measure(model: Any, loss: torch.Tensor) -> tuple[float, float]:
        model.zero_grad()
        loss.backward()
        squares = [
            tensor.grad.double().square().sum().item() for tensor in model.parameters() if tensor.grad is not None
        ]
        model.zero_grad()
        return loss.item(), math.sqrt(sum(squares))

    return measure


@pytest.fixture
def own_loss(gradient: Any) -> Callable[..., tuple[float, float]]:
    """``own_loss(trainer, rows)``: the trainer's mean loss over rows of its data as one batch, and its gradient."""

    def measure(trainer: Any, rows: Sequence[int]) -> tuple[float, float]:
        batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
        return gradient(trainer.model, trainer.objective.loss_sum(batch) / trainer.objective.weight(batch))

    return measure


class Stop(TrainerCallback):
    """Asks the run to stop before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def outcome(folder: Path) -> dict[str, Any]:
    """The last checkpoint's tensor files, and the log without what depends on the clock."""
    last = directory.checkpoints(folder)[-1]
    files = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    clock = {"throughput", "elapsed_time", "remaining_time"}
    lines = [{key: line[key] for key in line if key not in clock} for line in read_log(folder / "trainer_log.jsonl")]
    return files | {"lines": lines}


@pytest.fixture
def whole_and_parts(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """``whole_and_parts(make, steps)``: what runs of ``make(output_dir=...)`` leave: one in peace, one in parts.

    The second is stopped before each of the steps, and gone on with by a new trainer.
    """

    def run(make: Callable[..., Any], steps: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        make(output_dir=str(whole)).train()
        for step in steps:
            trainer = make(output_dir=str(parts))
            trainer.add_callback(Stop(step))
            with pytest.raises(InterruptedRunError):
                trainer.train()
        make(output_dir=str(parts)).train()
        return outcome(whole), outcome(parts)

    return run
