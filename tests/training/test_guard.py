"""Numbers that are none, and memory that does not suffice: what was trained is what should have been, or nothing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from ft_plugins.backends.cpu.runtime import CpuRuntime
from ftcore.errors import RunError, UsageError
from ftcore.testing import tiny_model
from ftcore.training.callbacks.progress import read_log
from ftcore.training.step.guard import out_of_memory

LENGTHS = [9, 17, 6, 30, 12, 3, 21, 4, 16, 5, 28, 11]
PLAIN = {"finetuning_type": "full", "disable_shuffling": True, "per_device_train_batch_size": 2, "max_steps": 4}


class Watch(TrainerCallback):
    """Keeps the weights after each step, and does something before one."""

    def __init__(self, step: int = 0, action: Callable[..., None] | None = None) -> None:
        self.step, self.action = step, action
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.action and state.global_step + 1 == self.step:
            self.action(**kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})


class BeforeSteps(TrainerCallback):
    """Calls something before each step that the optimizer really does."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        optimizer.optimizer.register_step_pre_hook(self.call)


def poison_loss(trainer: Any, step: int) -> None:
    honest = trainer.objective.loss_sum
    trainer.objective.loss_sum = lambda batch: (
        honest(batch) * (math.nan if trainer.state.global_step + 1 == step else 1.0)
    )


def poison_gradient(trainer: Any, step: int) -> None:
    """One number of one parameter's."""

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step + 1 == step:
            gradient = gradient.clone()
            gradient.view(-1)[3] = math.inf
        return gradient

    next(tensor for name, tensor in trainer.model.named_parameters() if "up_proj" in name).register_hook(hook)


def poison_weight(trainer: Any, step: int) -> None:
    def action(model: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            model.get_parameter("model.layers.0.mlp.up_proj.weight").view(-1)[7] = math.nan

    trainer.add_callback(Watch(step, action))


def poison_rate(trainer: Any, step: int) -> None:
    def action(optimizer: Any, **kwargs: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = math.inf

    trainer.add_callback(Watch(step, action))


POISONS = {"loss": poison_loss, "gradient": poison_gradient, "weight": poison_weight, "learning rate": poison_rate}


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("poison", POISONS)
def test_no_step_on_what_is_not_a_number(
    poison: str, accumulated: int, trainer_of: Any, tokens: Any, tmp_path: Path
) -> None:
    """It stops at step 3 with the weights of step 2, names step and rows, and what was logged are numbers."""
    options = PLAIN | {"gradient_accumulation_steps": accumulated, "num_train_epochs": 9}
    trainer = trainer_of(tokens(LENGTHS, untrained=()), **options)
    watch = Watch()
    trainer.add_callback(watch)
    stepped: list[int] = []

    def note(*_: Any) -> None:
        stepped.append(trainer.state.global_step + 1)

    POISONS[poison](trainer, 3)
    trainer.add_callback(BeforeSteps(note))
    with pytest.raises(RunError) as caught:
        trainer.train()
    what = "loss" if poison == "weight" else poison
    rows = range(2 * accumulated * 2 + 1, 2 * accumulated * 3 + 1)
    assert f"the {what} is {'inf' if poison in ('gradient', 'learning rate') else 'nan'} at step 3" in str(caught.value)
    assert f"rows.jsonl:{rows[0]}, rows.jsonl:{rows[1]}" in str(caught.value)
    assert stepped == [1, 2]
    now = trainer.model.state_dict()
    same = [name for name in now if torch.equal(now[name], watch.weights[1][name])]
    spoilt = ["model.layers.0.mlp.up_proj.weight"] if poison == "weight" else []
    assert sorted({*now} - {*same}) == spoilt
    losses = [line["loss"] for line in read_log(tmp_path / "out" / "trainer_log.jsonl")]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 1 for loss in losses)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_skipped_step_changes_nothing(
    poison: str, trainer_of: Any, tokens: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights and moments stay as they were, the next step is that of a run without it, no mean counts it."""
    trainer = trainer_of(tokens(LENGTHS, untrained=()), **PLAIN, on_nonfinite="skip")
    watch = Watch()
    trainer.add_callback(watch)
    POISONS[poison](trainer, 2)
    output = trainer.train()
    first, second, third, _ = watch.weights
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(second[name], third[name]) for name in first if "proj" in name)
    lines = [line for line in read_log(tmp_path / "out" / "trainer_log.jsonl") if "loss" in line]
    assert [line["current_steps"] for line in lines] == [1, 3, 4]
    assert output.metrics["train_loss"] == pytest.approx(sum(line["loss"] for line in lines) / 3, rel=1e-6)
    said = capsys.readouterr().out
    assert f"the {poison} is " in said
    assert "rows.jsonl:3, rows.jsonl:4; the step is skipped (1 of at most 10)" in said


def test_skipping_ends(trainer_of: Any, tokens: Any) -> None:
    trainer = trainer_of(tokens(LENGTHS, untrained=()), **PLAIN, on_nonfinite="skip", max_skipped_steps=2)
    honest = trainer.objective.loss_sum
    trainer.objective.loss_sum = lambda batch: honest(batch) * math.inf
    with pytest.raises(RunError, match=r"the loss is inf at step 3, .*weights were not updated .skipped before: 2."):
        trainer.train()


@pytest.mark.parametrize("every", [1, 3])
def test_a_batch_without_labels_is_never_logged_as_0(
    every: int, trainer_of: Any, tokens: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows 3 and 4 are step 2's."""
    options = PLAIN | {"max_steps": 3, "logging_steps": every}
    trainer = trainer_of(tokens(LENGTHS, untrained=(2, 3)), **options)
    alone: list[float] = []
    honest = trainer.objective.loss_sum

    def keep(batch: Any) -> torch.Tensor:
        loss = honest(batch)
        alone.append(loss.item() / trainer.objective.weight(batch))
        return loss

    trainer.objective.loss_sum = keep
    output = trainer.train()
    lines = [line for line in read_log(tmp_path / "out" / "trainer_log.jsonl") if "loss" in line]
    steps = [line["current_steps"] for line in lines]
    mean = sum(alone) / 2
    assert len(alone) == 2
    assert steps == ([1, 3] if every == 1 else [3])
    expected = alone if every == 1 else [mean]
    assert [line["loss"] for line in lines] == [pytest.approx(value, rel=1e-6) for value in expected]
    assert output.metrics["train_loss"] == pytest.approx(mean, rel=1e-6)
    assert "step 2: no token of its rows has a label; its rows: rows.jsonl:3, rows.jsonl:4" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["training", "evaluation"])
def test_no_label_at_all_is_refused_before_the_first_step(which: str, trainer_of: Any, tokens: Any) -> None:
    whole, empty = tokens([5, 6, 7], untrained=()), tokens([5, 6, 7], untrained=(0, 1, 2))
    sets = (empty, whole) if which == "training" else (whole, empty)
    trainer = trainer_of(*sets, eval_strategy="steps", val_size=2, **PLAIN)
    with pytest.raises(UsageError, match=f"no token of the {which} data has a label"):
        trainer.train()
    assert trainer.state.global_step == 0


# ---- memory ----


class Small:
    """Makes a trainer run out of memory with more rows than ``rows`` at a time, at one micro-batch or at all.

    A backward pass that fails half way has added some gradients already: here all of them, twice as large.
    """

    def __init__(self, trainer: Any, rows: int, at: int | None = None) -> None:
        self.trainer, self.rows, self.at, self.calls = trainer, rows, at, 0
        self.honest = trainer.objective.loss_sum
        trainer.objective.loss_sum = self

    def __call__(self, batch: Any) -> torch.Tensor:
        self.calls += 1
        if len(batch["index"]) > self.rows and self.at in (None, self.calls):
            (2 * self.honest(batch)).backward()
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")
        return self.honest(batch)


def gradients(trainer: Any) -> dict[str, torch.Tensor]:
    """Those of the first step, of a run that does not clip them."""
    found: dict[str, torch.Tensor] = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            if not found:
                found.update({name: tensor.grad.clone() for name, tensor in model.named_parameters()})

    trainer.add_callback(Keep())
    trainer.train()
    assert found
    return found


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("size", [4, 3])
def test_the_gradient_stays_the_same(
    size: int, at: int, trainer_of: Any, tokens: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Out of memory at the first, second or third of three micro-batches: the same rows, the same step (R10)."""
    options = {"finetuning_type": "full", "per_device_train_batch_size": size, "gradient_accumulation_steps": 3}
    options |= {"max_steps": 2, "max_grad_norm": 0, "dtype": torch.float64}
    lines = {}
    found = {}
    for name in ("whole", "split"):
        trainer = trainer_of(tokens(LENGTHS), output_dir=str(tmp_path / name), **options)
        if name == "split":
            Small(trainer, rows=2, at=at)
        found[name] = gradients(trainer)
        lines[name] = [line["loss"] for line in read_log(tmp_path / name / "trainer_log.jsonl")]
    for name, expected in found["whole"].items():
        apart = (found["split"][name] - expected).abs().max() / expected.abs().max()
        assert apart <= 1e-6, name
    assert lines["split"] == [pytest.approx(loss, rel=1e-6) for loss in lines["whole"]]
    assert trainer.guard.max_rows == 2
    assert (
        f"out of memory at step 1 with {size} rows at a time: this step and all later ones use"
        in capsys.readouterr().out
    )


def test_it_halves_until_it_fits(trainer_of: Any, tokens: Any) -> None:
    trainer = trainer_of(tokens(LENGTHS), finetuning_type="full", per_device_train_batch_size=8, max_steps=2)
    Small(trainer, rows=1)
    trainer.train()
    assert trainer.guard.max_rows == 1
    assert trainer.state.global_step == 2


def test_at_one_row_it_stops_with_what_to_change(trainer_of: Any, tokens: Any, rows_file: Path) -> None:
    trains = {"do_train": True, "dataset": str(rows_file), "finetuning_type": "full"}
    trainer = trainer_of(tokens(LENGTHS), per_device_train_batch_size=2, cutoff_len=4096, **trains)
    Small(trainer, rows=0)
    with pytest.raises(RunError) as caught:
        trainer.train()
    text = str(caught.value)
    assert text.startswith("out of memory at step 1 with 1 row; its rows: rows.jsonl:")
    estimate = trainer.plan.memory
    assert f"the run needs {estimate}" in text
    assert "disable_gradient_checkpointing: false needs " in text
    assert "cutoff_len: 2048 needs " in text


def test_notes_are_not_counted_twice(trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """What a stage notes beside the loss is that of the rows, once."""
    means = []
    for rows in (9, 2):
        trainer = trainer_of(tokens(LENGTHS), output_dir=str(tmp_path / str(rows)), per_device_train_batch_size=4)
        honest = trainer.objective.loss_sum

        def noting(batch: Any, trainer: Any = trainer, honest: Any = honest) -> torch.Tensor:
            trainer.objective.log_metric("length", batch["cu_seqlens"].diff().float())
            return honest(batch)

        trainer.objective.loss_sum = noting
        Small(trainer, rows=rows)
        trainer.train()
        means.append([line["length"] for line in read_log(tmp_path / str(rows) / "trainer_log.jsonl")])
    assert means[0] == means[1]


def test_dropout_is_that_of_rows_that_fit(trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """What failed leaves no trace in the random state: a run that starts with small micro-batches ends the same."""
    weights = []
    for rows in (8, 2):
        options = {"lora_dropout": 0.5, "per_device_train_batch_size": 4, "output_dir": str(tmp_path / str(rows))}
        trainer = trainer_of(tokens(LENGTHS), **options)
        if rows == 2:
            trainer.guard.max_rows = 2
        else:
            Small(trainer, rows=2, at=1)
        trainer.train()
        weights.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a matmul primitive"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of range"), False),
    ],
)
def test_what_is_out_of_memory(error: Exception, answer: bool) -> None:
    assert out_of_memory(error, CpuRuntime()) is answer


@pytest.mark.parametrize("message", ["mat1 and mat2 shapes cannot be multiplied"])
def test_other_errors_are_not_hidden(message: str, trainer_of: Any, tokens: Any) -> None:
    trainer = trainer_of(tokens(LENGTHS), **PLAIN)

    def broken(batch: Any) -> torch.Tensor:
        raise RuntimeError(message)

    trainer.objective.loss_sum = broken
    with pytest.raises(RuntimeError, match=message):
        trainer.train()


def limited(model: Path, folder: Path, megabytes: int, rows: int, tokens: int = 0) -> subprocess.CompletedProcess[str]:
    """A run of its own with so much more address space than the loaded model takes; below 0, all there is."""
    script = Path(__file__).with_name("memory_runs.py")
    words = [sys.executable, str(script), str(model), str(folder), str(megabytes), str(rows), str(tokens)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


def without_transforms(done: Any) -> str:
    """What a process printed after the line of the model transforms."""
    first, _, rest = done.stdout.partition("\n")
    assert first.startswith("model transforms: packed attention, ")
    return rest


@pytest.mark.slow
def test_memory_that_really_runs_out(tiny_model_dir: Path, tmp_path: Path) -> None:
    """32 rows of 500 tokens in 60 MB: halved twice or so, the same weights as with all the memory (R10)."""
    whole, tight = (limited(tiny_model_dir, tmp_path / str(size), size, 32) for size in (-1, 60))
    assert whole.returncode == tight.returncode == 0, tight.stderr
    assert without_transforms(whole).startswith("rows at a time None norm ")
    lines = without_transforms(tight).splitlines()
    assert lines[0].startswith("out of memory at step 1 with 32 rows at a time: this step and all later ones use")
    most, norm = lines[-1].split()[4], lines[-1].split()[6]
    assert 1 <= int(most) <= 16
    assert float(norm) == pytest.approx(float(without_transforms(whole).split()[6]), rel=1e-6)


@pytest.mark.slow
def test_passes_need_no_more_than_they_take(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The same rows in the same 60 MB, two at a time from the start: nothing runs out."""
    done = limited(tiny_model_dir, tmp_path, 60, 32, tokens=1000)
    assert without_transforms(done).startswith("rows at a time None norm "), done.stderr


@pytest.mark.slow
def test_memory_that_does_not_suffice_for_one_row(tmp_path: Path) -> None:
    """One activation of this model's is 16 MB."""
    done = limited(tiny_model(tmp_path / "wide", intermediate_size=8192), tmp_path / "out", 8, 1)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert without_transforms(done).startswith("out of memory at step 1")
    assert "cutoff_len: 250 needs " in done.stdout
