"""lora's variants: against peft used by hand, against their papers' formulas, and what is left on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcore.errors import RunError, UsageError
from ftcore.training.reference.start_weights import reference_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21's own


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def by_hand(base: Any, model: Any, weight: Any) -> Any:
    """A fresh base whose adapted weights are ``weight(stem, W, A, B)``."""
    changed, tensors = base(), dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in changed.named_parameters():
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if (first := tensors.get(f"{stem}.lora_A.default.weight")) is not None:
                second = tensors[f"{stem}.lora_B.default.weight"]
                tensor.copy_(weight(stem, tensor, first, second))
    return changed


def test_rslora_scales_by_the_root_of_the_rank(applied: Any, base: Any, shake: Any, logits: Any) -> None:
    run = applied(use_rslora=True, lora_rank=4, lora_alpha=6)
    shake(run.model)
    changed = by_hand(base, run.model, lambda stem, weight, first, second: weight + 6 / 2 * second @ first)
    assert torch.allclose(logits(run.model), logits(changed), atol=2e-5)


def test_dora_trains_lengths_apart_from_directions(applied: Any, base: Any, shake: Any, logits: Any) -> None:
    """The paper's formula 5: ``m (W + s B A) / ||W + s B A||``, a length for each row."""
    run = applied(use_dora=True, lora_rank=4, lora_alpha=8)
    assert torch.equal(logits(run.model), logits(base()))
    shake(run.model)
    tensors = dict(run.model.named_parameters())

    def weight(stem: str, weight: Any, first: Any, second: Any) -> torch.Tensor:
        direction = weight + 2 * second @ first
        length = tensors[f"{stem}.lora_magnitude_vector.default.weight"]
        return length[:, None] * direction / direction.norm(dim=1, keepdim=True)

    assert torch.allclose(logits(run.model), logits(by_hand(base, run.model, weight)), atol=2e-5)
    assert sum(".lora_magnitude_vector." in name for name in trained(run.model)) == 14


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_the_loss_and_gradients_are_those_of_peft_used_by_hand(
    options: dict[str, Any], applied: Any, base: Any
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    run = applied(lora_rank=4, fused_lora=False, **options)
    targets = sorted(run.model.peft_config["default"].target_modules)
    set_seed(42)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, **options)
    own = get_peft_model(base(), config)
    ids = torch.arange(3, 40)[None]
    for model in (run.model, own):
        model.train()
        model(ids, labels=ids).loss.backward()
    ours, theirs = trained(run.model), trained(own)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert all(torch.equal(tensor.grad, theirs[name].grad) for name, tensor in ours.items())


PISSA = [
    ({"pissa_iter": -1}, 8),
    ({"pissa_iter": -1, "pissa_convert": True}, 16),
    ({}, 16),
    ({"use_rslora": True}, 16),
    ({"use_dora": True}, 16),
]


@pytest.mark.parametrize(("options", "rank"), PISSA)
def test_pissa_begins_as_the_model_and_loads_in_plain_peft(
    options: dict[str, Any], rank: int, applied: Any, base: Any, shake: Any, logits: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    run = applied(pissa_init=True, **options)
    assert torch.allclose(logits(run.model), logits(base()), atol=1e-6)
    shake(run.model)
    run.method.save(run.model, tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    assert loaded.peft_config["default"].r == rank
    assert torch.allclose(logits(loaded), logits(run.model), atol=1e-5)
    assert not torch.allclose(logits(run.model), logits(base()), atol=0.1)


@pytest.mark.parametrize("options", [{}, {"pissa_iter": -1}])
def test_pissa_is_read_back_exactly(
    options: dict[str, Any], applied: Any, shake: Any, logits: Any, tmp_path: Path
) -> None:
    one, other = (applied(pissa_init=True, **options) for _ in range(2))
    shake(one.model)
    one.method.save(one.model, tmp_path)
    other.method.load(other.model, tmp_path)
    assert torch.equal(logits(one.model), logits(other.model))


def test_pissa_begun_from_other_values_is_refused(applied: Any, tmp_path: Path) -> None:
    one, other = applied(pissa_init=True), applied(pissa_init=True, seed=7)
    one.method.save(one.model, tmp_path)
    with pytest.raises(RunError, match=r"was initialised with other values of .*q_proj.lora_A.weight"):
        other.method.load(other.model, tmp_path)


def test_loraplus_groups_parameters_as_peft_does(applied: Any) -> None:
    """peft's own function, asked for AdamW, is the oracle: the rate of each parameter."""
    from peft.optimizers import create_loraplus_optimizer

    run = applied(loraplus_lr_ratio=16, learning_rate=1e-3, use_dora=True, lora_target="q_proj,embed_tokens")
    theirs = create_loraplus_optimizer(
        run.model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_lr_embedding=1e-6
    )
    rates = {id(tensor): group["lr"] for group in theirs.param_groups for tensor in group["params"]}
    own = {
        name: run.method.learning_rate(run.plan.method.options, name, tensor, 1e-3)
        for name, tensor in trained(run.model).items()
    }
    assert own == {name: rates[id(tensor)] for name, tensor in trained(run.model).items()}
    assert sorted(set(own.values())) == [1e-6, 1e-3, 1.6e-2]


@pytest.mark.parametrize("names", ["embed_tokens", "lm_head", "embed_tokens,lm_head"])
def test_a_tied_head_stays_tied(names: str, tmp_path: Path, plan_of: Any, base: Any, shake: Any, logits: Any) -> None:
    from peft import PeftModel

    from ftcore.testing import tiny_model

    folder = tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    plan = plan_of(model_name_or_path=str(folder), additional_target=names)
    model = plan.method.component.apply(plan, base(folder=folder))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert embedding.modules_to_save["default"].weight is head.modules_to_save["default"].weight
    shake(model)
    (tmp_path / "adapter").mkdir()
    plan.method.component.save(model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base(folder=folder), tmp_path / "adapter")
    assert torch.allclose(logits(loaded), logits(model), atol=1e-6)


@pytest.mark.parametrize("start", ["fresh", "continued", "pissa"])
def test_the_reference_is_the_model_as_it_was(
    start: str, applied: Any, base: Any, shake: Any, logits: Any, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"additional_target": "lm_head"}
    if start == "continued":
        earlier = applied(**options)
        shake(earlier.model)
        (tmp_path / "sft").mkdir()
        earlier.method.save(earlier.model, tmp_path / "sft")
        options = {"adapter_name_or_path": str(tmp_path / "sft")}
    if start == "pissa":
        options["pissa_init"] = True
    run = applied(**options)
    before = logits(run.model)
    reference = reference_of(run.plan, run.model)
    shake(run.model)
    after = logits(run.model)
    assert not torch.allclose(before, after, atol=1e-2)
    with reference():
        assert torch.equal(logits(run.model), before)
    assert torch.equal(logits(run.model), after)
    assert len(trained(run.model)) == 29
    assert torch.allclose(before, logits(base()), atol=1e-6) == (start != "continued")


def test_the_reference_of_a_fused_head_is_the_frozen_one(applied: Any, shake: Any) -> None:
    from ftcore.training.forward.causal_lm import CausalLMForward

    run = applied(additional_target="lm_head")
    scorer = CausalLMForward(run.model)
    first = scorer.head().weight.clone()
    reference = reference_of(run.plan, run.model)
    shake(run.model)
    with reference():
        assert torch.equal(scorer.head().weight, first)
    assert not torch.equal(scorer.head().weight, first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pissa_convert": True}, "pissa_convert has no effect without pissa_init"),
        ({"pissa_init": True, "quantization_bit": 4}, "pissa_init decomposes the weights, and these are quantised"),
    ],
)
def test_what_cannot_be_is_said_by_the_plan(options: dict[str, Any], message: str, plan_of: Any) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(**options)


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"additional_target": "embed_tokens,lm_head"}, {"additional_target": "down_proj"}]
)
def test_count_is_what_is_trained(options: dict[str, Any], applied: Any, tiny_model_dir: Path) -> None:
    from ftcore.resources.model_shapes import Architecture

    architecture = Architecture.from_config(json.loads((tiny_model_dir / "config.json").read_text()))
    assert architecture is not None
    run = applied(lora_target="q_proj,up_proj", **options)
    counted = run.method.count(architecture, run.plan.method.options)
    assert counted == (4 * architecture.parameters, sum(tensor.numel() for tensor in trained(run.model).values()))
