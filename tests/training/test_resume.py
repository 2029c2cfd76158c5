"""Stopping and going on: to the same bytes, or refused."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save
from transformers import TrainerCallback

from ft_plugins.stages.sft.objective import NextToken
from ftcore.errors import RunError, UsageError
from ftcore.training.callbacks.progress import read_log
from ftcore.training.callbacks.signals import InterruptedRunError
from ftcore.training.checkpointing import directory
from ftcore.training.trainer import Trainer

LENGTHS = [9, 17, 6, 30, 12, 3, 21, 1, 16, 5, 28, 11, 8]
OPTIONS = {
    "max_steps": 8,  # an epoch has three steps and a short last one
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "lora_dropout": 0.3,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "val_size": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.1,
}


class Stop(TrainerCallback):
    """Sends this process a signal in step ``step``, as often as told."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def trained(trainer_of: Any, tokens: Any, tmp_path: Path) -> Any:
    """``trained(name, stop=None, **options)``: trains in a folder of that name and returns it."""

    def run(name: str, stop: int | None = None, **options: Any) -> Path:
        values = OPTIONS | options | {"output_dir": str(tmp_path / name)}
        trainer = trainer_of(tokens(LENGTHS), tokens([7, 9]), **values)
        if stop is not None:
            trainer.add_callback(Stop(stop))
            with pytest.raises(InterruptedRunError):
                trainer.train()
        else:
            trainer.train()
            trainer.save_model()
        return tmp_path / name

    return run


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must be equal: weights, optimizer, scheduler, random states, and what was logged."""
    last = directory.checkpoints(folder)[-1]
    names = [*last.glob("*.safetensors"), last / "scheduler.json", last / "optimizer.json"]
    files = {f"{last.name}/{path.name}": path.read_bytes() for path in names}
    files |= {path.name: path.read_bytes() for path in [*folder.glob("*.safetensors"), *folder.glob("adapter*.json")]}
    clock = {"throughput", "elapsed_time", "remaining_time"}
    lines = [{key: line[key] for key in line if key not in clock} for line in read_log(folder / "trainer_log.jsonl")]
    return files | {"lines": lines}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_stopped_after_each_step_it_goes_on_to_the_same_bytes(method: str, trained: Any) -> None:
    """Dropout, accumulation, a short last batch, evaluation, logs between checkpoints, and epochs past the first."""
    expected = outcome(trained("whole", finetuning_type=method))
    assert len(expected["lines"]) == 6
    for step in (1, 3, 4, 6, 7) if method == "lora" else (2, 5):
        trained(f"stopped{step}", stop=step, finetuning_type=method)
        found = outcome(trained(f"stopped{step}", finetuning_type=method))
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == [], f"stopped after step {step}"


@pytest.mark.slow
def test_stopped_in_every_step_it_still_ends_the_same(trained: Any) -> None:
    expected = outcome(trained("whole"))
    for step in range(1, 8):
        trained("often", stop=step)
    assert outcome(trained("often")) == expected


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_steps_and_changes_nothing(trained: Any, caplog: pytest.LogCaptureFixture) -> None:
    expected = outcome(trained("whole"))
    folder = trained("spoilt", stop=7)
    spoilt = folder / "checkpoint-7" / "optimizer.safetensors"
    content = bytearray(spoilt.read_bytes())
    content[-1] ^= 1
    spoilt.write_bytes(content)
    assert outcome(trained("spoilt")) == expected
    assert "optimizer.safetensors is damaged" in caplog.text


@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_signal_writes_a_checkpoint(
    number: int, status: int, name: str, trainer_of: Any, tokens: Any, tmp_path: Path
) -> None:
    """At the end of the step in which it came, and the handlers are put back."""
    before = signal.getsignal(number)
    trainer = trainer_of(tokens(LENGTHS))
    trainer.add_callback(Stop(2, number))
    with pytest.raises(InterruptedRunError) as caught:
        trainer.train()
    folder = tmp_path / "out" / "checkpoint-2"
    assert caught.value.exit_code == status
    assert str(caught.value) == f"stopped by {name} at step 2; {folder} is written; run the same command to resume"
    assert directory.verify(folder).step == 2
    assert signal.getsignal(number) is before


@pytest.mark.slow
def test_a_finished_run_has_nothing_left_to_do(
    trained: Any, trainer_of: Any, tokens: Any, tmp_path: Path, capsys: Any
) -> None:
    """No step more than asked for, no train_loss of 0, and it says so."""
    folder = trained("whole")
    trainer = trainer_of(tokens(LENGTHS), tokens([7, 9]), **(OPTIONS | {"output_dir": str(folder)}))
    output = trainer.train()
    assert output.global_step == 8
    assert "train_loss" not in output.metrics
    assert f"{folder / 'checkpoint-8'} is the last step of this run: nothing left to train" in capsys.readouterr().out


@pytest.mark.slow
def test_train_loss_is_over_this_runs_steps(trained: Any, trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """Stopped between two log lines: the sum in the checkpoint is logged, and counted in no mean of this run."""
    whole = trained("whole", logging_steps=1)
    losses = [line["loss"] for line in read_log(whole / "trainer_log.jsonl") if "loss" in line]
    trained("stopped", stop=5, logging_steps=3)
    options = OPTIONS | {"output_dir": str(tmp_path / "stopped"), "logging_steps": 3}
    output = trainer_of(tokens(LENGTHS), tokens([7, 9]), **options).train()
    assert output.metrics["train_loss"] == pytest.approx(sum(losses[5:]) / 3, rel=1e-5)
    logged = [line["loss"] for line in read_log(tmp_path / "stopped" / "trainer_log.jsonl") if "loss" in line]
    assert logged == [pytest.approx(sum(losses[start : start + 3]) / 3, rel=1e-5) for start in (0, 3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate was 0.01, now it is 0.5"),
        ({"lora_rank": 4}, "method lora_rank was 8, now it is 4"),
        ({"seed": 7}, "seed was 42, now it is 7"),
        ({"adam_beta2": 0.9}, "optimizer adam_beta2 was 0.999, now it is 0.9"),
        ({"finetuning_type": "full"}, "method was "),
    ],
)
def test_other_options_are_refused(change: dict[str, Any], message: str, trained: Any) -> None:
    trained("stopped", stop=2)
    with pytest.raises(UsageError) as caught:
        trained("stopped", **change)
    assert message in str(caught.value)
    assert "this run cannot resume from" in str(caught.value)


def test_other_rows_or_another_template_are_refused(trained: Any, trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    folder = trained("stopped", stop=2)
    data = tokens(LENGTHS)
    data.weights[3][4] += 1
    trainer = trainer_of(data, tokens([7, 9]), **(OPTIONS | {"output_dir": str(folder)}))
    trainer.tokenizer.chat_template += " "
    with pytest.raises(UsageError) as caught:
        trainer.train()
    messages = [problem.message for problem in caught.value.problems]
    assert [message.split(" was ")[0] for message in messages[1:]] == ["chat template", "training rows"]


@pytest.mark.slow
def test_options_without_effect_on_weights_may_change(trained: Any) -> None:
    expected = outcome(trained("whole"))
    trained("stopped", stop=2)
    again = outcome(trained("stopped", plot_loss=True, per_device_eval_batch_size=1, save_total_limit=5))
    assert again["adapter_model.safetensors"] == expected["adapter_model.safetensors"]


@pytest.mark.slow
def test_starting_anew_needs_leave(trained: Any) -> None:
    """``never`` over an earlier run's checkpoints: refused; with overwrite_output_dir they go."""
    folder = trained("run", stop=5)
    with pytest.raises(UsageError, match="holds checkpoints of an earlier run: checkpoint-3, checkpoint-5"):
        trained("run", resume_from_checkpoint="never")
    trained("run", stop=1, overwrite_output_dir=True)
    assert [path.name for path in directory.checkpoints(folder)] == ["checkpoint-1"]


@pytest.mark.slow
def test_a_named_checkpoint_is_taken_or_its_damage_named(trained: Any, tmp_path: Path) -> None:
    expected = outcome(trained("whole"))
    chosen = tmp_path / "whole" / "checkpoint-3"
    found = outcome(trained("other", resume_from_checkpoint=str(chosen)))
    assert found["adapter_model.safetensors"] == expected["adapter_model.safetensors"]
    (chosen / "scheduler.json").unlink()
    with pytest.raises(UsageError, match=r"resume_from_checkpoint: .*scheduler\.json is missing"):
        trained("third", resume_from_checkpoint=str(chosen))


@pytest.mark.slow
def test_best_and_last_survive_pruning(trained: Any) -> None:
    """With ``load_best_model_at_end`` the best one's weights are those that are saved."""
    options = {"save_steps": 2, "eval_steps": 2, "save_total_limit": 1, "load_best_model_at_end": True}
    # the loss falls, so the best by a rule turned round is the first, on every processor
    folder = trained("run", learning_rate=1e-2, metric_for_best_model="loss", greater_is_better=True, **options)
    state = json.loads((folder / "checkpoint-8" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert best.name == "checkpoint-2"
    assert [path.name for path in directory.checkpoints(folder)] == [best.name, "checkpoint-8"]
    saved = (folder / "adapter_model.safetensors").read_bytes()
    assert saved == (best / "adapter_model.safetensors").read_bytes()


def test_a_full_disk_is_one_line_and_leaves_the_earlier_one(
    trainer_of: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ftcore.training.checkpointing.state as snapshots

    trainer = trainer_of(tokens(LENGTHS), save_strategy="steps", save_steps=1, max_steps=3)
    real = snapshots.save_pytree

    def full(folder: Path, name: str, tree: Any) -> None:
        if trainer.state.global_step == 2 and name == "optimizer":
            raise OSError(28, "No space left on device")
        real(folder, name, tree)

    monkeypatch.setattr(snapshots, "save_pytree", full)
    message = r"checkpoint-2 could not be written to .*: No space left on device; it needs about 196,608 bytes, .* free"
    with pytest.raises(RunError, match=message):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "out").glob("*checkpoint*")) == ["checkpoint-1"]
    assert list((tmp_path / "out").glob(".tmp-*")) == []


def test_nothing_pickled_is_written(trained: Any) -> None:
    folder = trained("whole", finetuning_type="full")
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".jsonl", ".jinja"}


@pytest.mark.slow
def test_every_row_is_seen_as_often_as_there_are_epochs(
    trainer_of: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after every step, with accumulation, shuffling, dropout and a short last batch."""
    seen: list[int] = []
    options = OPTIONS | {"max_steps": -1, "num_train_epochs": 3, "output_dir": str(tmp_path / "run")}
    real = NextToken.loss_sum

    def noting(self: NextToken, batch: Any) -> Any:
        if self.context.model.training:
            seen.extend(batch["index"])
        return real(self, batch)

    monkeypatch.setattr(NextToken, "loss_sum", noting)
    for step in range(1, 12):
        trainer = trainer_of(tokens(LENGTHS), tokens([7, 9]), **options)
        trainer.add_callback(Stop(step))
        with pytest.raises(InterruptedRunError):
            trainer.train()
    trainer_of(tokens(LENGTHS), tokens([7, 9]), **options).train()
    assert sorted(seen) == sorted([*range(len(LENGTHS))] * 3)
    epochs = [seen[start : start + len(LENGTHS)] for start in range(0, len(seen), len(LENGTHS))]
    assert all(sorted(epoch) == [*range(len(LENGTHS))] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.slow
def test_killed_in_an_epochs_evaluation_it_is_made_up_for(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of an epoch's last step is written after the epoch's evaluation, and so never without it."""
    options = {"eval_strategy": "epoch", "save_steps": 1}
    expected = outcome(trained("whole", **options))
    assert [line["current_steps"] for line in expected["lines"] if "eval_loss" in line] == [4, 8]
    real = Trainer.evaluate

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        trained("killed", **options)
    monkeypatch.setattr(Trainer, "evaluate", real)
    assert outcome(trained("killed", **options)) == expected


def test_every_damage_of_a_real_checkpoint_is_found(trained: Any) -> None:
    """200 flipped bits and 20 cuts over all files, each file deleted, and files that another program would write."""
    folder = trained("run", stop=3) / "checkpoint-3"
    dice, files = random.Random(0), sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) > 10

    def refused(file: Path, content: bytes | None) -> None:
        before = file.read_bytes()
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(directory.DamagedError, match=re.escape(file.name)):
            directory.verify(folder)
        file.write_bytes(before)

    for number in range(200):
        file = files[number % len(files)]
        content = bytearray(file.read_bytes())
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        refused(file, bytes(content))
    for number in range(20):
        content = files[number % len(files)].read_bytes()
        refused(files[number % len(files)], content[: dice.randrange(len(content))])
    for file in files:
        refused(file, None)
    weights = load_file(folder / "adapter_model.safetensors")
    for changed in ({n: t.half() for n, t in weights.items()}, {n: t[:1] for n, t in weights.items()}):
        refused(folder / "adapter_model.safetensors", save(changed))
    directory.verify(folder)
