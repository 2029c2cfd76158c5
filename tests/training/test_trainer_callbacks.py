"""Callbacks that have state, that raise, and second calls of a trainer; who reads what is passed on to transformers."""

from __future__ import annotations

import ast
import inspect
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ft_plugins.stages.sft.objective import NextToken
from ftcore.config.training_answers import PASSED_ON
from ftcore.training.callbacks.signals import InterruptedRunError
from ftcore.training.trainer import Trainer

LENGTHS = [9, 8, 7, 6, 9, 8, 7, 6]
SAVES: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "per_device_train_batch_size": 2}


class Counter(TrainerCallback, ExportableState):
    """Counts steps by a number of its own."""

    def __init__(self, by: int = 1) -> None:
        self.by, self.count = by, 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.count += self.by

    def state(self) -> dict[str, Any]:
        return {"args": {"by": self.by}, "attributes": {"count": self.count}}


class Bare(TrainerCallback, ExportableState):
    """Has attributes only."""

    count = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.count += 1

    def state(self) -> dict[str, Any]:
        return {"attributes": {"count": self.count}}


@pytest.fixture
def trainer_with(run_of: Any, tokens: Any) -> Any:
    """``trainer_with(callbacks, **options)``."""

    def make(callbacks: Any = (), **values: Any) -> Any:
        data = tokens(LENGTHS, untrained=())
        return Trainer(run_of(**SAVES | values), NextToken(), train=data, evaluation=data, callbacks=callbacks)

    return make


def test_state_over_a_resume(trainer_with: Any, stops_after: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of a class in their order, one without arguments, and one that the resumed run lacks."""
    trainer_with([Counter(1), Counter(10), Bare(), stops_after(2)]).train()
    again = trainer_with([Counter(), Counter()])
    again.train()
    found = [one for one in again.callback_handler.callbacks if isinstance(one, Counter)]
    assert [(one.by, one.count) for one in found] == [(1, 4), (10, 40)]
    assert "holds the state of Bare, a callback that this run lacks" in capsys.readouterr().out


def test_state_without_arguments(trainer_with: Any, stops_after: Any) -> None:
    trainer_with([Bare(), stops_after(2)]).train()
    again = trainer_with([Bare()])
    again.train()
    (found,) = (one for one in again.callback_handler.callbacks if isinstance(one, Bare))
    assert found.count == 4


def test_a_class_of_a_plugin(with_plugins: Any, hooks: Any, run_of: Any, tokens: Any) -> None:
    """A plugin may give the class or an object."""
    plugins = with_plugins(acme=hooks(ft_callbacks=lambda plan: [Counter, Bare()]))
    run = run_of(**SAVES)
    run.plan = replace(run.plan, plugins=plugins)
    trainer = Trainer(run, NextToken(), train=tokens(LENGTHS, untrained=()))
    trainer.train()
    counts = [one.count for one in trainer.callback_handler.callbacks if isinstance(one, Counter | Bare)]
    assert counts == [4, 4]


RAISES = [(event, ValueError("mine")) for event in ("train_begin", "step_begin", "prediction_step", "save")]


@pytest.mark.parametrize(("event", "error"), [*RAISES, ("substep_end", KeyboardInterrupt())])
def test_what_a_callback_raises(event: str, error: BaseException, trainer_with: Any) -> None:
    """It arrives as it is; signal handlers and bar are as before, and the trainer trains and evaluates again."""
    options = {"eval_strategy": "steps", "eval_steps": 2, "val_size": 2, "gradient_accumulation_steps": 2}
    raised: list[bool] = []

    def once(*args: Any, **kwargs: Any) -> None:
        if not raised:
            raised.append(True)
            raise error

    callback = TrainerCallback()
    setattr(callback, f"on_{event}", once)
    trainer = trainer_with([callback], **options, skip_memory_metrics=False)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(type(error)):
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) is before
    assert trainer.reports.bar is None
    assert not trainer.training
    output = trainer.train()
    assert output.global_step == 4
    assert "train_mem_cpu_alloc_delta" in output.metrics
    assert trainer.evaluating is False
    assert {"eval_loss", "eval_mem_cpu_alloc_delta"} <= trainer.evaluate().keys()


def test_a_second_training(trainer_with: Any) -> None:
    """It starts its counts anew, after an interrupted one too; the weights are those that are there."""
    trainer = trainer_with(save_strategy="no")
    first = trainer.evaluate(), trainer.train().metrics, trainer.guard.rows_seen
    second = trainer.train().metrics, trainer.guard.rows_seen
    assert first[2] == second[1] == 8
    assert second[0]["total_flos"] == first[1]["total_flos"]
    assert second[0]["train_loss"] < first[1]["train_loss"]
    assert trainer.evaluate()["eval_loss"] < first[0]["eval_loss"]
    stopper = TrainerCallback()
    stopper.on_step_end = lambda args, state, control, **_: (
        signal.raise_signal(signal.SIGTERM) if state.global_step == 1 and not trainer.signals.received else None
    )
    trainer.add_callback(stopper)
    with pytest.raises(InterruptedRunError):
        trainer.train()
    trainer.callback_handler.remove_callback(stopper)
    assert trainer.train().global_step == 4


def test_memory_of_an_evaluation_within_a_training(trainer_with: Any) -> None:
    """As in transformers, which measures the training only."""
    seen: list[dict[str, float]] = []
    callback = TrainerCallback()
    callback.on_step_end = lambda *args, **_: seen.append(trainer.evaluate())
    trainer = trainer_with([callback], skip_memory_metrics=False, max_steps=1)
    assert "train_mem_cpu_alloc_delta" in trainer.train().metrics
    assert not [name for name in seen[0] if "_mem_" in name]


def test_underflow_and_overflow_are_found(trainer_with: Any) -> None:
    """transformers' hooks see the modules that ft's forward pass calls."""
    trainer = trainer_with(debug="underflow_overflow", max_steps=1)
    weight = next(one for name, one in trainer.model.named_parameters() if "down_proj" in name)
    with torch.no_grad():
        weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="inf/nan"):
        trainer.train()


def test_an_accumulation_that_another_trainer_left(trainer_with: Any) -> None:
    """accelerate's optimizers do not step while its shared state is within an accumulation."""
    from accelerate.state import GradientState

    GradientState().sync_gradients = False
    trainer = trainer_with(save_strategy="no", finetuning_type="full")
    before = [tensor.clone() for tensor in trainer.model.parameters()]
    trainer.train()
    assert not all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))


def test_tensorboard_has_what_transformers_writes(
    trainer_of: Any, tokens: Any, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """The same tags at the same steps, but for ft's names of the throughput."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers import AutoModelForCausalLM, TrainingArguments

    values: dict[str, Any] = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1}
    values |= {"per_device_train_batch_size": 2, "report_to": "tensorboard", "save_strategy": "no"}
    data = tokens([8] * 8, untrained=())

    def collate(rows: Any) -> dict[str, torch.Tensor]:
        ids = torch.stack([torch.from_numpy(row["input_ids"]).long() for row in rows])
        return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}

    args = TrainingArguments(
        str(tmp_path / "theirs"), use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
        include_num_input_tokens_seen="all", **values,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    transformers.Trainer(model, args, collate, data, data).train()
    trainer_of(data, data, finetuning_type="full", val_size=2, **values, output_dir=str(tmp_path / "ours")).train()
    found = []
    for run in ("theirs", "ours"):
        (folder,) = (tmp_path / run / "runs").iterdir()
        events = EventAccumulator(str(folder))
        events.Reload()
        scalars = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        found.append((scalars, {*events.Tags()["tensors"]}))
    theirs, ours = found
    assert ours[1] == theirs[1]
    clock = {"train/train_runtime", "train/train_tokens_per_second", "train/throughput", "eval/num_input_tokens_seen"}
    clock |= {"train/num_input_tokens_seen", "train/total_flos"}  # each is in more or fewer lines
    kept = [{tag: steps for tag, steps in one[0].items() if tag not in clock} for one in (ours, theirs)]
    assert kept[0] == kept[1]
    assert {"train/throughput", "train/num_input_tokens_seen"} <= ours[0].keys()


FLOW, TRAINER = "transformers.trainer_callback", "ftcore.training.trainer"
LOOP, LOADERS, DDP = "ftcore.training.loop", "ftcore.training.batching.loaders", "ftcore.training.parallel.accelerated"
INTEGRATIONS, PLAN = "transformers.integrations.integration_utils", "ftcore.config.validation.core"
ARGUMENTS, EVALUATION = "transformers.training_args", "ftcore.training.evaluation"
READERS: dict[str, str] = {
    **dict.fromkeys(("eval_delay", "logging_first_step", "logging_strategy"), FLOW),
    **dict.fromkeys(("disable_tqdm", "full_determinism", "load_best_model_at_end", "skip_memory_metrics"), TRAINER),
    **dict.fromkeys(("debug", "eval_on_start", "torch_empty_cache_steps"), LOOP),
    "data_seed": LOADERS,
    **{f"dataloader_{name}": LOADERS for name in ("persistent_workers", "pin_memory", "prefetch_factor")},
    "dataloader_multiprocessing_context": LOADERS,
    **{f"ddp_{name}": DDP for name in ("broadcast_buffers", "bucket_cap_mb", "find_unused_parameters", "static_graph")},
    **dict.fromkeys(("greater_is_better", "metric_for_best_model"), EVALUATION),
    **dict.fromkeys(("log_level", "log_level_replica", "log_on_each_node", "ddp_backend", "tf32"), ARGUMENTS),
    "lr_scheduler_kwargs": "ftcore.training.optimization",
    **dict.fromkeys(("project", "run_name", "trackio_space_id"), INTEGRATIONS),
    **dict.fromkeys(("trackio_bucket_id", "trackio_static_space_id"), INTEGRATIONS),
}
"""Field -> the module that reads it in a run. The others are read where a plan is made (tests/config)."""
OF_THE_PLAN = {"accelerator_config", "bf16_full_eval", "fp16_full_eval", "use_cpu", "neftune_noise_alpha"}


@pytest.mark.parametrize("field", sorted({*PASSED_ON} - OF_THE_PLAN))
def test_what_is_passed_on_is_read(field: str) -> None:
    """By the module that the table names: as an attribute, or by its name."""
    tree = ast.parse(inspect.getsource(__import__(READERS[field], fromlist=["_"])))
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert field in read | names
