"""Optimizers in runs: what they save is what a resume goes on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcore.errors import UsageError
from ftcore.training.checkpointing import directory

OPTIONS: dict[str, Any] = {
    "finetuning_type": "full",
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "weight_decay": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "val_size": 2,
}
LOW_RANK = {"optim_args": "rank=4, update_proj_gap=2"}
CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw_8bit": {},
    "sgd": {"sgd_momentum": 0.9},
    "adafactor": {},
    "rmsprop": {"optim_args": "momentum=0.9,centered=true"},
    "lion_8bit": {},
    "ademamix_8bit": {},
    "schedule_free_adamw": {"lr_scheduler_type": "constant", "warmup_steps": 2},
    "schedule_free_sgd": {"lr_scheduler_type": "constant"},
    "stable_adamw": {},
}
NOT_KEPT: dict[str, dict[str, Any]] = {
    "galore_adamw": LOW_RANK,
    "galore_adafactor": LOW_RANK,
    "apollo_adamw": LOW_RANK,
    "adamw_torch_8bit": {},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of the packages themselves
@pytest.mark.parametrize("name", CASES)
def test_a_resume_ends_with_the_same_weights(name: str, trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """To the bit; what is used in evaluations and left behind are a schedule-free optimizer's averages."""
    found = []
    for folder in ("whole", "resumed"):
        options = OPTIONS | CASES[name] | {"optim": name, "output_dir": str(tmp_path / folder)}
        try:
            trainer = trainer_of(tokens([9, 8, 7, 6, 5, 9]), tokens([7]), **options)
        except UsageError as error:
            pytest.skip(str(error))
        trainer.train()
        if folder == "resumed":
            shutil.rmtree(directory.checkpoints(tmp_path / folder)[-1])
            trainer = trainer_of(tokens([9, 8, 7, 6, 5, 9]), tokens([7]), **options)
            trainer.train()
            assert trainer.running_loss.first_step == 2
        found.append({key: tensor.clone() for key, tensor in trainer.model.state_dict().items()})
        logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert trainer.evaluate()["eval_loss"] == logged[-1]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", NOT_KEPT)
def test_state_that_cannot_be_kept(name: str, trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """It is said before the run; with checkpoints of weights alone it trains."""
    options = OPTIONS | NOT_KEPT[name] | {"optim": name}
    try:
        trainer = trainer_of(tokens([9, 8, 7, 6]), tokens([7]), save_only_model=True, **options)
    except UsageError as error:
        pytest.skip(str(error))
    trainer.train()
    assert len(directory.checkpoints(tmp_path / "out")) == 2
    with pytest.raises(UsageError) as caught:
        trainer_of(tokens([9]), do_train=True, dataset="x.json", **options)
    assert f"the state of optimizer {name} holds objects that cannot be saved without pickle" in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise"])
def test_those_that_step_inside_the_backward_pass(name: str, trainer_of: Any, tokens: Any) -> None:
    """Every weight moves, or the plan says what is missing."""
    extra = LOW_RANK if name.endswith("layerwise") else {}
    try:
        trainer = trainer_of(tokens([9, 8, 7, 6]), finetuning_type="full", optim=name, **extra)
    except UsageError as error:
        pytest.skip(str(error))
    before = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert [key for key in after if torch.equal(after[key], before[key])] == []
