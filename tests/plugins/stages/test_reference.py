"""The reference: which model it is, computed once, kept by content."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftcore.errors import RunError
from ftcore.testing import tiny_model
from ftcore.training.reference import logprob_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "v2" / "reference"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number of rows for each set that a reference is computed of, not read."""
    seen: list[int] = []
    honest = logprob_cache._computed

    def counted(trainer: Any, measure: Any, reference: Any, rows: Any) -> Any:
        seen.append(len(rows))
        return honest(trainer, measure, reference, rows)

    monkeypatch.setattr(logprob_cache, "_computed", counted)
    return seen


def reference(trainer: Any) -> np.ndarray:
    return np.asarray(trainer.train_dataset.reference)


@pytest.mark.slow
def test_kept_for_later_runs_of_any_adapter_and_of_no_adapter(trainer_of: Any, cache: Path, passes: list[int]) -> None:
    """A fresh adapter changes nothing, so its rank, its seed and its targets are no part of the reference."""
    first = reference(trainer_of("dpo", 6, finetuning_type="lora", val_size=2))
    assert passes == [4, 2]
    for options in (
        {"lora_rank": 4, "lora_target": "q_proj"},
        {"seed": 42, "lora_alpha": 3},
        {"finetuning_type": "full"},
    ):
        assert np.array_equal(reference(trainer_of("dpo", 6, val_size=2, **options)), first)
    assert np.array_equal(reference(trainer_of("dpo", 6, val_size=2, pref_loss="ipo", ld_alpha=0.5)), first)
    assert passes == [4, 2]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("loss", ["orpo", "simpo", "sft"])
def test_some_losses_have_none(loss: str, trainer_of: Any, cache: Path, passes: list[int]) -> None:
    assert "reference" not in trainer_of("dpo", 4, pref_loss=loss).train_dataset[0]
    assert passes == []


@pytest.mark.slow
def test_other_rows_and_other_weights_are_other_references(
    trainer_of: Any, rows_of: Any, cache: Path, passes: list[int], tmp_path: Path
) -> None:
    first = reference(trainer_of("dpo", 6))
    trainer_of("dpo", rows_of["dpo"](6, seed=1))
    assert len(passes) == 2
    other = reference(trainer_of("dpo", 6, model_name_or_path=str(tiny_model(tmp_path / "other", seed=1))))
    assert passes == [6, 6, 6]
    assert not np.allclose(first, other)


@pytest.mark.slow
def test_what_is_damaged_is_computed_anew(
    trainer_of: Any, cache: Path, passes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    first = reference(trainer_of("dpo", 6))
    (file,) = cache.glob("*/values.safetensors")
    content = file.read_bytes()
    for damaged in (content[:-20], content[:-1] + bytes([content[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert np.array_equal(reference(trainer_of("dpo", 6)), first)
    assert passes == [6] * 4
    assert sum("is computed again" in record.message for record in caplog.records) == 3


def test_a_cache_that_cannot_be_written_costs_time_alone(
    trainer_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int], capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "file"))
    assert len(reference(trainer_of("dpo", 3))) == 3
    assert "not cached: " in capsys.readouterr().out


@pytest.mark.slow
def test_with_a_starting_adapter_it_is_base_and_adapter(
    trainer_of: Any, moved: Any, cache: Path, own_loss: Any, plain_logps: Any, tmp_path: Path
) -> None:
    """Going on with it, or with a new one over it; not so the base alone."""
    start = trainer_of("dpo", 4)
    base = reference(start)
    moved(start.model)
    start.save_model(str(tmp_path / "adapter"))
    row = start.train_dataset[0]
    with torch.no_grad():
        each = plain_logps(start.model.eval(), row["prompt_ids"], row["chosen_ids"]) * torch.tensor(
            row["chosen_weights"]
        )
    for options in ({}, {"create_new_adapter": True}):
        trainer = trainer_of("dpo", 4, adapter_name_or_path=str(tmp_path / "adapter"), **options)
        assert reference(trainer)[0, 0].sum() == pytest.approx(each.sum().item(), rel=1e-5)
        assert own_loss(trainer, range(4))[0] == pytest.approx(np.log(2), rel=1e-6)
        assert not np.allclose(reference(trainer), base, rtol=1e-3)


@pytest.mark.slow
def test_another_model_or_adapter(trainer_of: Any, moved: Any, cache: Path, tmp_path: Path) -> None:
    """``ref_model`` takes the model's place, ``ref_model_adapters`` go on top of it."""
    other = tiny_model(tmp_path / "other", seed=1)
    wanted = trainer_of("dpo", 4, model_name_or_path=str(other))
    assert np.array_equal(reference(trainer_of("dpo", 4, ref_model=str(other))), reference(wanted))
    moved(wanted.model)
    wanted.save_model(str(tmp_path / "adapter"))
    started = trainer_of("dpo", 4, model_name_or_path=str(other), adapter_name_or_path=str(tmp_path / "adapter"))
    adapted = trainer_of("dpo", 4, ref_model=str(other), ref_model_adapters=str(tmp_path / "adapter"))
    assert np.allclose(reference(adapted), reference(started), rtol=1e-5)
    assert not np.allclose(reference(adapted), reference(wanted), rtol=1e-3)


def test_a_reference_of_another_vocabulary_is_refused(trainer_of: Any, tmp_path: Path, cache: Path) -> None:
    from ftcore.testing import tiny_tokenizer

    other = tiny_model(tmp_path / "other", tokenizer=tiny_tokenizer(vocab_size=300))
    with pytest.raises(RunError, match="has a vocabulary of"):
        trainer_of("dpo", 4, ref_model=str(other))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_only_rows_that_are_taken(stage: str, trainer_of: Any, cache: Path, passes: list[int], tmp_path: Path) -> None:
    """A run of two steps of three rows, of 40 that are shuffled: those six, the same ones and numbers as of all."""
    options = {"per_device_train_batch_size": 3, "disable_shuffling": False, "finetuning_type": "lora"}
    trainer = trainer_of(stage, 40, **options, max_steps=2)
    found = reference(trainer)
    taken = np.isfinite(found).reshape(40, -1).all(axis=1)
    assert passes == [6]
    assert taken.sum() == 6
    batches = trainer.train_loader().batch_sampler
    assert (
        sorted(row for batch, _ in zip(batches, range(2), strict=False) for row in batch) == taken.nonzero()[0].tolist()
    )
    trainer.train()
    options |= {"output_dir": str(tmp_path / "other")}
    assert np.array_equal(reference(trainer_of(stage, 40, **options, max_steps=2)), found, equal_nan=True)
    assert passes == [6]
    whole = reference(trainer_of(stage, 40, **options, max_steps=14))
    assert passes == [6, 40]
    np.testing.assert_allclose(found[taken], whole[taken], rtol=1e-5)
