"""``share_prompt`` in dpo and rm: the same losses, gradients, metrics, references and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ft_plugins.stages.dpo.losses import LOSSES
from ft_plugins.stages.dpo.stage import SMOOTHED
from ftcore.errors import UsageError
from ftcore.training.batching.collators import tokens_read
from ftcore.training.callbacks.progress import read_log
from ftcore.utils.content_store import REFERENCE, store_root

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *(("dpo", {"pref_loss": name}) for name in LOSSES if name != "exo_pair"),
    *(("dpo", {"pref_loss": name, "dpo_label_smoothing": 0.1}) for name in SMOOTHED),
    ("dpo", {"ld_alpha": 0.3}),
    ("dpo", {"pref_ftx": 0.5}),
    ("dpo", {"finetuning_type": "full"}),
    ("dpo", {"finetuning_type": "freeze"}),
    ("dpo", {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "cache_frozen_prefix": True}),
    ("rm", {}),
    ("rm", {"finetuning_type": "full"}),
]


def meters(trainer: Any) -> dict[str, float]:
    found = trainer.metrics.training.means(trainer.strategy)
    trainer.metrics.training.clear()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "options"), VARIANTS, ids=str)
def test_loss_gradient_and_metrics(stage: str, options: Any, trainer_of: Any, moved: Any, own_loss: Any) -> None:
    """In float64, whose norms are float32's (see tests/training/test_shared_prefix.py); the model has left its
    reference."""
    found = []
    for share in (False, True):
        trainer = trainer_of(
            stage, 5, dtype=torch.float64, **{"finetuning_type": "lora", "share_prompt": share} | options
        )
        moved(trainer.model)
        found.append((*own_loss(trainer, range(5)), meters(trainer)))
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(5)])
        assert (tokens_read(batch) > batch["input_ids"].numel()) is share
    assert found[1] == (
        *(pytest.approx(value, rel=1e-7) for value in found[0][:2]),
        pytest.approx(found[0][2], rel=1e-7),
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "rm"])
def test_whole_runs(stage: str, trainer_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32: log lines, tokens read, and the evaluation; and that the prompt was computed once."""
    logs, metrics, references, computed = [], [], [], []
    for share in (False, True):
        monkeypatch.setenv("FT_CACHE", str(tmp_path / f"cache {share}"))
        out = tmp_path / str(share)
        trainer = trainer_of(stage, 11, val_size=3, max_steps=3, share_prompt=share, output_dir=str(out))
        references.append(np.asarray(getattr(trainer.train_dataset, "reference", 0.0)))
        trainer.train()
        clock = ("elapsed_time", "remaining_time", "throughput")
        lines = read_log(out / "trainer_log.jsonl")[:3]
        logs.append([{name: line[name] for name in line if name not in clock} for line in lines])
        found = trainer.evaluate()
        metrics.append({name: found[name] for name in found if "second" not in name and "runtime" not in name})
        computed.append(trainer.state.total_flos)
    for lines in logs:  # before the first step the gains are 0, and which of two is greater is rounding
        lines[0].pop("rewards/accuracies", None)
    assert logs[1] == [pytest.approx(line, rel=1e-4, abs=1e-5) for line in logs[0]]
    assert [line["num_input_tokens_seen"] for line in logs[1]] == [line["num_input_tokens_seen"] for line in logs[0]]
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(references[1], references[0], rtol=1e-5)
    assert computed[1] < 0.8 * computed[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "rm"])
def test_a_resume_is_exact(stage: str, trainer_of: Any, whole_and_parts: Any) -> None:
    def make(**options: Any) -> Any:
        options |= {"save_strategy": "steps", "save_steps": 2, "share_prompt": True, "disable_shuffling": False}
        return trainer_of(stage, 9, max_steps=5, per_device_train_batch_size=3, finetuning_type="lora", **options)

    whole, parts = whole_and_parts(make, [2, 4])
    assert parts == whole


@pytest.mark.slow
def test_what_is_shared_decides_the_reference(trainer_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that differ in rounding have names of their own: a resume finds its own."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    for share in (False, True, False):
        trainer_of("dpo", 4, share_prompt=share)
    names = [path.name for path in (store_root() / REFERENCE.name).iterdir() if not path.name.startswith(".")]
    assert len(names) == 2


@pytest.mark.parametrize("stage", ["dpo", "rm"])
def test_noise_on_embeddings_is_each_answers_own(stage: str, trainer_of: Any) -> None:
    assert trainer_of(stage, 3, neftune_noise_alpha=5.0).data_collator.shares is None
    with pytest.raises(UsageError, match="neftune_noise_alpha adds different noise to each sequence"):
        trainer_of(stage, 3, neftune_noise_alpha=5.0, share_prompt=True)


def test_what_is_written(trainer_of: Any) -> None:
    """``auto`` goes by the model's cost; a word that is none is refused with those that are."""
    assert trainer_of("rm", 3).data_collator.shares.layers == 2
    assert trainer_of("rm", 3, share_prompt=False).data_collator.shares is None
    with pytest.raises(UsageError, match="share_prompt"):
        trainer_of("rm", 3, share_prompt="sometimes")


def test_fillers_change_nothing(trainer_of: Any, moved: Any) -> None:
    """Rows without a weight, where processes share an epoch."""
    from ftcore.training.batching.samplers import Rows

    for stage in ("dpo", "rm"):
        trainer = trainer_of(stage, 4, share_prompt=True)
        moved(trainer.model)
        rows = Rows(trainer.train_dataset)
        alone = trainer.data_collator([rows[0], rows[1]])
        filled = trainer.data_collator([rows[0], rows[-3], rows[1]])
        assert trainer.objective.weight(filled) == trainer.objective.weight(alone)
        assert trainer.objective.loss_sum(filled).item() == pytest.approx(
            trainer.objective.loss_sum(alone).item(), rel=1e-6
        )
