"""The trainer: losses over the global batch, evaluation, logs, what stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from ftcore.errors import RunError
from ftcore.training.batching.samplers import EpochBatches, EpochLoader, Rows
from ftcore.training.callbacks.progress import read_log
from ftcore.training.plots import plot_losses, smooth

LENGTHS = [9, 17, 6, 30, 12, 3, 21, 1, 16, 5, 28, 11]


def logged(folder: Path, name: str) -> list[float]:
    return [line[name] for line in read_log(folder / "trainer_log.jsonl") if name in line]


@pytest.mark.parametrize(
    ("size", "accumulated"), [(1, 1), (2, 1), (3, 2), (4, 1), (5, 2), (6, 1), (7, 1), (8, 1), (1, 8)]
)
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_step_equals_a_plain_padded_one(
    size: int,
    accumulated: int,
    dtype: torch.dtype,
    exact: float,
    trainer_of: Any,
    tokens: Any,
    plain_loss: Any,
    gradient_norm: Any,
    tmp_path: Path,
) -> None:
    """Loss and gradient norm of the first step; row 2 trains nothing, rows 5 and 7 have three tokens and one.

    transformers sums logged losses in float32, so that a loss is to 1e-6 at best.
    """
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 1}
    data = tokens(LENGTHS)
    trainer = trainer_of(data, finetuning_type="full", dtype=dtype, max_grad_norm=0, **options)
    rows = [data[number] for number in trainer.train_loader().batch_sampler.order()[: size * accumulated]]
    expected = plain_loss(trainer.model, rows)
    expected.backward()
    norm = gradient_norm(trainer.model)
    trainer.model.zero_grad()
    trainer.train()
    assert logged(tmp_path / "out", "loss") == [pytest.approx(expected.item(), rel=max(exact, 1e-6))]
    assert logged(tmp_path / "out", "grad_norm") == [pytest.approx(norm, rel=exact)]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_loss_numbers(method: str, trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """A change of any of these numbers is a change of what is trained."""
    expected = {
        "full": [6.012614, 6.053202, 6.020262],
        "lora": [6.012614, 6.030289, 6.066264],
    }
    trainer = trainer_of(tokens(LENGTHS), finetuning_type=method)
    output = trainer.train()
    losses = logged(tmp_path / "out", "loss")
    assert losses == [pytest.approx(value, rel=1e-4) for value in expected[method]]
    assert output.metrics["train_loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_gradient_checkpointing_changes_nothing(trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """Not even a bit, with dropout on."""
    losses = []
    for wanted in (True, False):
        options = {
            "disable_gradient_checkpointing": wanted,
            "lora_dropout": 0.2,
            "output_dir": str(tmp_path / str(wanted)),
        }
        trainer = trainer_of(tokens(LENGTHS), **options)
        trainer.train()
        losses.append([logged(tmp_path / str(wanted), "loss"), logged(tmp_path / str(wanted), "grad_norm")])
        assert trainer.plan.gradient_checkpointing is not wanted
    assert losses[0] == losses[1]


def test_evaluation_weighs_every_token_alike(trainer_of: Any, tokens: Any, plain_loss: Any) -> None:
    """The mean over the whole set, whatever the batches; the model goes back to training."""
    data = tokens(LENGTHS)
    trainer = trainer_of(tokens([4]), data, finetuning_type="full", per_device_eval_batch_size=5)
    with torch.no_grad():
        expected = plain_loss(trainer.model.eval(), [data[number] for number in range(len(data))])
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert metrics.keys() == {
        "eval_loss",
        "eval_runtime",
        "eval_samples_per_second",
        "eval_steps_per_second",
        "epoch",
    }


def test_evaluating_nothing_is_refused(trainer_of: Any, tokens: Any) -> None:
    """A mean over no token is not 0."""
    trainer = trainer_of(tokens([4]), tokens([5, 6, 7], untrained=(0, 1, 2)))
    with pytest.raises(RunError, match="no token of the evaluation data has a label"):
        trainer.evaluate()


def test_a_global_batch_that_trains_nothing_changes_nothing(trainer_of: Any, tokens: Any) -> None:
    """Neither weights nor moments, not even by weight decay."""
    data = tokens([5, 6, 7, 8], untrained=(2, 3))
    trainer = trainer_of(data, disable_shuffling=True, per_device_train_batch_size=2, max_steps=2, weight_decay=0.1)
    seen: list[dict[str, torch.Tensor]] = []

    class Look(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            state = trainer.model.state_dict() | {
                f"moment {key}": moments["exp_avg"] for key, moments in enumerate(trainer.optimizer.state.values())
            }
            seen.append({name: tensor.clone() for name, tensor in state.items()})

    trainer.add_callback(Look())
    trainer.train()
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_a_number_stops_before_the_step(what: str, trainer_of: Any, tokens: Any) -> None:
    """With the step, the learning rate and where the rows came from; the weights stay as they were."""
    data = tokens([5, 6, 7, 8], untrained=())
    trainer = trainer_of(data, disable_shuffling=True, per_device_train_batch_size=2, finetuning_type="full")
    honest = trainer.objective.loss_sum

    def broken(batch: Any) -> torch.Tensor:
        loss = honest(batch)
        if 2 not in batch["index"]:
            return loss
        if what == "loss":
            return loss * float("nan")
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    trainer.objective.loss_sum = broken
    before: dict[str, torch.Tensor] = {}

    class Look(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            before.update({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})

    trainer.add_callback(Look())
    with pytest.raises(RunError) as caught:
        trainer.train()
    text = str(caught.value)
    assert f"the {what} is" in text
    assert "at step 2, learning rate 0.00666667; its rows: rows.jsonl:3, rows.jsonl:4; the weights were" in text
    assert trainer.state.global_step == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_log_lines(trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """Every line's names, and the values that do not depend on the clock."""
    data = tokens([10] * 8, untrained=())
    options = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "val_size": 2}
    trainer_of(data, data, **options).train()
    lines = read_log(tmp_path / "out" / "trainer_log.jsonl")
    times = {"percentage", "elapsed_time", "remaining_time"}
    step = {"current_steps", "total_steps", "loss", "grad_norm", "learning_rate", "epoch"} | times
    step |= {"throughput", "num_input_tokens_seen"}
    assert [line.keys() for line in lines] == [
        step,
        step,
        {"current_steps", "total_steps", "eval_loss", "epoch"} | times,
    ]
    fixed = ("current_steps", "total_steps", "learning_rate", "epoch", "num_input_tokens_seen", "percentage")
    assert [[line.get(name) for name in fixed] for line in lines] == [
        [1, 2, 0.01, 0.5, 40, 50.0],
        [2, 2, 0.005, 1.0, 80, 100.0],
        [2, 2, None, 1.0, None, 100.0],
    ]
    assert lines[-1]["remaining_time"] == "0:00:00"


def test_plots_are_pictures(tmp_path: Path) -> None:
    lines = [{"current_steps": step, "loss": 3 / step} for step in range(1, 30)] + [
        {"current_steps": 9, "eval_loss": 1.0}
    ]
    (tmp_path / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"half')
    written = plot_losses(tmp_path)
    assert [file.name for file in written] == ["training_loss.png", "training_eval_loss.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for file in written)
    assert all(file.stat().st_size > 5000 for file in written)


def test_smoothing_starts_at_the_first_value() -> None:
    weight = 1.8 * (1 / (1 + np.exp(-0.1)) - 0.5)
    assert smooth([2.0, 4.0]) == [2.0, pytest.approx(weight * 2 + (1 - weight) * 4)]


def test_neftune_noise_has_each_sequences_own_size(trainer_of: Any, tokens: Any) -> None:
    """alpha / sqrt(L H): sequences of 4 and 16 tokens get noise of which the first is twice the second."""
    data = tokens([4, 16], untrained=())
    trainer = trainer_of(data, disable_shuffling=True, neftune_noise_alpha=5.0)
    batch = trainer.data_collator([data[0], data[1]])
    trainer.noise.expect(batch)
    embeddings = trainer.model.get_input_embeddings()
    clean = embeddings.eval()(batch["input_ids"])
    noise = (embeddings.train()(batch["input_ids"]) - clean).abs()[0]
    limits = [5 / (length * 64) ** 0.5 for length in (4, 16)]
    assert 0.9 * limits[0] < noise[:4].max() <= limits[0] + 1e-6
    assert 0.9 * limits[1] < noise[4:].max() <= limits[1] + 1e-6


def test_each_epoch_has_each_row_once_in_another_order() -> None:
    batches = EpochBatches(10, 3, seed=7)
    epochs = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        epochs.append([index for batch in batches for index in batch])
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len(batches) == 4


@pytest.mark.parametrize("rows", range(1, 14))
def test_processes_share_an_epoch(rows: int) -> None:
    """Together they see every row once, in equally many steps; fillers are the only further rows."""
    shares = [list(EpochBatches(rows, 2, 3, process, 3)) for process in range(3)]
    assert len({len(share) for share in shares}) == 1
    seen = [index for share in shares for batch in share for index in batch]
    assert sorted(index for index in seen if index >= 0) == list(range(rows))
    assert all(batch for share in shares for batch in share)


def test_a_filler_weighs_nothing(tokens: Any) -> None:
    data = tokens([5, 6], untrained=())
    assert Rows(data)[-2]["weights"].tolist() == [0.0] * 6
    assert Rows(data)[-2]["input_ids"].tolist() == data[1]["input_ids"].tolist()


def test_loading_draws_nothing_from_the_global_random_state(tokens: Any) -> None:
    loader = EpochLoader(tokens([5, 6]), EpochBatches(2, 1, 0), collate_fn=lambda rows: rows)
    state = torch.get_rng_state()
    assert len(list(loader)) == 2
    assert torch.equal(torch.get_rng_state(), state)
