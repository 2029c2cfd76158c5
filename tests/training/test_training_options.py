"""What fields of TrainingArguments do in a run, those that ft reads itself and those that transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers.utils import logging as verbosity

from ftcore.errors import UsageError
from ftcore.training.batching.samplers import EpochBatches
from ftcore.training.callbacks.progress import ProgressCallback, read_log
from ftcore.training.checkpointing import directory
from ftcore.training.training_arguments import training_arguments

LENGTHS = [9, 17, 6, 30, 12, 3, 21, 8, 16, 5, 28]


@pytest.mark.parametrize(
    ("rows", "size", "processes", "expected"), [(11, 4, 1, 2), (12, 4, 1, 3), (11, 4, 2, 1), (3, 4, 1, 0)]
)
def test_batches_that_are_whole(rows: int, size: int, processes: int, expected: int) -> None:
    taken = []
    for process in range(processes):
        batches = EpochBatches(rows, size, 5, process, processes, whole=True)
        found = list(batches)
        assert len(batches) == len(found) == expected
        assert all(len(batch) == size and min(batch) >= 0 for batch in found)
        taken += [row for batch in found for row in batch]
    assert len({*taken}) == expected * size * processes


@pytest.mark.slow
def test_rows_that_fill_no_batch(
    trainer_of: Any, tokens: Any, stops_after: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """11 rows in batches of 4: two steps an epoch, of other rows each; a resume goes on to the same bytes."""
    options = {"dataloader_drop_last": True, "max_steps": -1, "num_train_epochs": 3, "save_strategy": "steps"}
    options |= {"save_steps": 100, "lora_dropout": 0.2}

    def trained(name: str, *callbacks: Any, resume: bool = False) -> Any:
        trainer = trainer_of(tokens(LENGTHS), **options, output_dir=str(tmp_path / name))
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train()
        return trainer

    whole = trained("whole")
    assert whole.state.global_step == 6
    assert capsys.readouterr().out.count("dataloader_drop_last: 3 of 11 rows are not used in each epoch") == 1
    trained("parts", stops_after(3))
    assert trained("parts").state.global_step == 6
    one, other = (directory.checkpoints(tmp_path / name)[-1] for name in ("whole", "parts"))
    assert one.name == other.name == "checkpoint-6"
    weights = load_file(one / "adapter_model.safetensors"), load_file(other / "adapter_model.safetensors")
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    with pytest.raises(UsageError, match="3 rows fill no batch of 4; lower per_device_train_batch_size, or remove"):
        trainer_of(tokens(LENGTHS[:3]), **options, output_dir=str(tmp_path / "few")).train()


def test_the_order_by_data_seed(trainer_of: Any, tokens: Any) -> None:
    orders = [
        trainer_of(tokens(LENGTHS), **values).train_loader().batch_sampler.order()
        for values in ({}, {"data_seed": 7}, {"seed": 7}, {"train_sampling_strategy": "sequential"})
    ]
    assert orders[1] == orders[2] != orders[0]
    assert orders[3] == [*range(11)]


def test_the_loader(trainer_of: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    values = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 3}
    values |= {"dataloader_multiprocessing_context": "spawn", "dataloader_pin_memory": False}
    loader = trainer_of(tokens(LENGTHS), **values).train_loader()
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (2, True, 3)
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert loader.pin_memory is False


def test_a_backend_is_for_several_processes(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftcore.training.training_arguments import passed_on

    plan = plan_of(ddp_backend="gloo")
    assert training_arguments(plan).ddp_backend is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert passed_on(plan) == {"ddp_backend": "gloo"}


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_bar(terminal: bool, wanted: bool, trainer_of: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "is_terminal", terminal)
    reports = trainer_of(tokens(LENGTHS), disable_tqdm=not wanted).reports
    assert isinstance(reports, ProgressCallback)
    assert reports.has_bar is (terminal and wanted)


def test_arguments_of_recomputing(trainer_of: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They arrive at torch's own, which is never reentrant; loss and gradients stay what they are."""
    import transformers.modeling_utils as modeling

    honest, seen = modeling.checkpoint, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append({key: value for key, value in kwargs.items() if key != "use_cache"})
        return honest(*args, **kwargs)

    monkeypatch.setattr(modeling, "checkpoint", watched)
    given = {"use_reentrant": True, "determinism_check": "none", "early_stop": False}

    def step(**values: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        trainer = trainer_of(tokens(LENGTHS), finetuning_type="full", **values)
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
        trainer.model.train()
        loss = trainer.objective.loss_sum(batch)
        loss.backward()
        return loss.detach(), [one.grad for one in trainer.model.parameters() if one.grad is not None]

    plain = step(gradient_checkpointing=False)
    assert not seen
    found = step(activation_checkpointing=True, activation_checkpointing_kwargs=given)
    wanted = {"use_reentrant": False, "determinism_check": "none", "early_stop": False}
    assert seen
    assert all(wanted.items() <= one.items() for one in seen)
    assert torch.equal(plain[0], found[0])
    assert all(torch.equal(one, other) for one, other in zip(plain[1], found[1], strict=True))


def test_tensorboards_folder(trainer_of: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    folder = tmp_path / "logs" / "here"
    trainer_of(tokens(LENGTHS), report_to="tensorboard", logging_dir=str(folder)).train()
    assert [*folder.glob("events.out.tfevents.*")]
    assert not (tmp_path / "out" / "runs").exists()
    assert not (tmp_path / "elsewhere").exists()
    trainer_of(tokens(LENGTHS), report_to="tensorboard", overwrite_output_dir=True).train()
    assert [*(tmp_path / "elsewhere").glob("events.out.tfevents.*")]


def test_tensorboards_folder_without_tensorboard(plan_of: Any) -> None:
    (line,) = (line for line in plan_of(logging_dir="logs").ignored if "logging_dir" in line)
    assert line.endswith("ignored: logging_dir: it is the folder for tensorboard, which report_to does not name")


def test_a_run_that_goes_on_does_not_start(trainer_of: Any, tokens: Any, stops_after: Any, tmp_path: Path) -> None:
    """``eval_on_start`` evaluates before the first step, once."""
    options = {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 3, "val_size": 1, "max_steps": 6}
    for callbacks in ([stops_after(2)], []):
        trainer = trainer_of(tokens(LENGTHS), tokens([7, 5]), save_strategy="steps", **options)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train()
    lines = read_log(tmp_path / "out" / "trainer_log.jsonl")
    assert [line["current_steps"] for line in lines if "eval_loss" in line] == [0, 3, 6]


RUNS: dict[str, dict[str, Any]] = {
    "logging_strategy": {"logging_strategy": "epoch"},
    "logging_first_step": {"logging_first_step": True, "logging_steps": 3},
    "eval_on_start": {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 2, "val_size": 1},
    "eval_delay": {"eval_delay": 2, "eval_strategy": "steps", "eval_steps": 1, "val_size": 1},
    "skip_memory_metrics": {"skip_memory_metrics": False},
    "full_determinism": {"full_determinism": True},
    "debug": {"debug": "underflow_overflow"},
    "torch_empty_cache_steps": {"torch_empty_cache_steps": 1},
    "log_level": {"log_level": "error"},
    "dataloader": {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "fork"},
    "ddp": {"ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 3, "ddp_backend": "gloo"},
    "tf32": {"tf32": False},
    "full_eval": {"bf16_full_eval": True, "eval_strategy": "steps", "eval_steps": 2, "val_size": 1},
    "use_cpu": {"use_cpu": False},
    "accelerator_config": {"accelerator_config": {"dispatch_batches": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_what_is_passed_on(name: str, trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    before = verbosity.get_verbosity()
    try:
        trainer = trainer_of(tokens(LENGTHS), tokens([7, 5]), **{"max_steps": 3, **RUNS[name]})
        level, deterministic = verbosity.get_verbosity(), torch.are_deterministic_algorithms_enabled()
        metrics = trainer.train().metrics
    finally:
        verbosity.set_verbosity(before)
        torch.use_deterministic_algorithms(False)
    lines = read_log(tmp_path / "out" / "trainer_log.jsonl")
    losses = [line["current_steps"] for line in lines if "loss" in line]
    evaluated = [line["current_steps"] for line in lines if "eval_loss" in line]
    assert losses == {"logging_strategy": [3], "logging_first_step": [1, 3]}.get(name, [1, 2, 3])
    assert evaluated == {"eval_on_start": [0, 2, 3], "eval_delay": [2, 3], "full_eval": [2, 3]}.get(name, [])
    assert ("train_mem_cpu_alloc_delta" in metrics) is (name == "skip_memory_metrics")
    assert deterministic is (name == "full_determinism")
    assert (level == verbosity.ERROR) is (name == "log_level")
