"""ppo's value head on a backbone of its own: what it shares, what it learns, what is saved."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ft_plugins.stages.ppo.objective import VALUE_FILE, VALUE_HEAD
from ft_plugins.stages.ppo.rollout import collate_responses
from ftcore.config import memory_planning
from ftcore.errors import RunError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def decoders(trainer: Any) -> tuple[Any, Any]:
    """The value head's, and the policy's."""
    model = trainer.model
    return trainer.objective.value_head.backbone, getattr(model, "get_base_model", lambda: model)().get_decoder()


def trained(model: Any) -> dict[str, torch.Tensor]:
    """The policy's own, by name."""
    return {
        name: tensor
        for name, tensor in model.named_parameters()
        if tensor.requires_grad and not name.startswith(VALUE_HEAD)
    }


def first_batch(trainer: Any) -> Any:
    """Of the first rollout, all of it."""
    trainer.rollouts.step(0)
    return trainer.on_device(collate_responses(trainer.rollouts.rows))


@pytest.mark.parametrize("method", ["full", "freeze", "lora", "qlora"])
def test_what_is_trained_is_its_own_and_what_is_frozen_is_the_policys(method: str, ppo: Any) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    trainer = ppo(finetuning_type=method, ppo_value_backbone="separate")
    theirs, own = (dict(decoder.named_parameters()) for decoder in decoders(trainer))
    assert theirs.keys() == own.keys()
    for name, tensor in own.items():
        assert (theirs[name] is tensor) is (not tensor.requires_grad), name
        assert torch.equal(theirs[name], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_each_loss_moves_its_own_weights(method: str, ppo: Any, moved: Any) -> None:
    """The policy's gradient is that of its loss alone; the copy's that of values by plain transformers."""
    options = {"finetuning_type": method, "ppo_value_coef": 0.5, "bf16": False}
    trainer, alone = ppo(**options, ppo_value_backbone="separate"), ppo(**options | {"ppo_value_coef": 0.0})
    batch = first_batch(trainer)
    for each in (trainer, alone):
        with torch.no_grad():
            each.objective.value_head.weight += 0.1  # at 0 nothing goes through it
        each.objective.loss_sum(batch).backward()
    expected = {name: tensor.grad for name, tensor in trained(alone.model).items()}
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in expected.values())
    for name, tensor in trained(trainer.model).items():
        assert torch.allclose(tensor.grad, expected[name], atol=1e-6), name
    backbone = trainer.objective.value_head.backbone
    found = {name: tensor.grad.clone() for name, tensor in backbone.named_parameters() if tensor.requires_grad}
    backbone.zero_grad()
    backbone.set_attn_implementation("eager")
    total = 0.0
    for row in trainer.rollouts.rows:
        ids, count = row["input_ids"], len(row["returns"])
        hidden = backbone(input_ids=ids[None].long(), use_cache=False).last_hidden_state[0]
        values = (hidden @ trainer.objective.value_head.weight[0] + trainer.objective.value_head.bias)[
            -1 - count : -1
        ].double()
        near = row["old_values"] + (values - row["old_values"]).clamp(-0.2, 0.2)
        errors = torch.maximum((values - row["returns"]).square(), (near - row["returns"]).square())
        total = total + 0.5 * 0.5 * errors.sum()
    total.backward()
    for name, tensor in backbone.named_parameters():
        if tensor.requires_grad:
            assert torch.allclose(found[name], tensor.grad, rtol=1e-3, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_stopped_it_goes_on_to_the_same_bytes(
    method: str, ppo: Any, whole_and_parts: Any, tmp_path: Path, tiny_model_dir: Path
) -> None:
    options: dict[str, Any] = {"finetuning_type": method, "max_steps": 5, "ppo_epochs": 2}
    options |= {"save_strategy": "steps", "save_steps": 3, "logging_steps": 2, "ppo_value_backbone": "separate"}
    found, parts = whole_and_parts(partial(ppo, **options), (2, 4))
    assert parts == found
    file = tmp_path / "whole" / "checkpoint-5" / VALUE_FILE
    names = load_file(file).keys()
    assert {"weight", "bias"} < names
    own = [tensor for tensor in decoders(ppo(**options))[0].parameters() if tensor.requires_grad]
    assert sum(name.startswith("backbone.") for name in names) == len(own)
    saved = tmp_path / "whole" / "checkpoint-5" / "model.safetensors"
    if method == "full":
        assert load_file(saved).keys() == load_file(tiny_model_dir / "model.safetensors").keys()
    with pytest.raises(RunError, match="value head does not fit this run: backbone"):
        ppo(finetuning_type=method).objective.load(file.parent)


def test_memory_counts_the_copy(ppo: Any) -> None:
    """Its trained parameters with gradient and AdamW's state; and activations of a second sequence for each row."""
    shared, separate = (ppo(ppo_value_backbone=kind) for kind in ("shared", "separate"))
    terms = [memory_planning.estimate_plan(trainer.plan).terms for trainer in (shared, separate)]
    count = sum(tensor.numel() for tensor in trained(separate.model).values())
    assert terms[1]["value head"] - terms[0]["value head"] == count * 16
    assert terms[1]["activations"] == pytest.approx(2 * terms[0]["activations"], rel=1e-3)


def test_a_copy_that_would_learn_nothing_is_refused(ppo: Any) -> None:
    with pytest.raises(UsageError, match="ppo_value_backbone: separate is not trained, because ppo_value_coef is 0"):
        ppo(ppo_value_backbone="separate", ppo_value_coef=0)
