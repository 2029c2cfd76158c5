"""Whether plain LoRA adds nothing is read from its weights; other adapters count as changing the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from ftcore.training.model_transforms.adapter_noop import adapter_is_noop

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21's


def _with(small_models: Any, config: Any = None, **options: Any) -> Any:
    own = config or LoraConfig(**{"target_modules": ["q_proj", "v_proj"], "r": 4, **options})
    return get_peft_model(small_models["llama"].make(), own)


PLAIN: dict[str, dict[str, Any]] = {
    "fresh": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "rank-stabilised": {"use_rslora": True},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "trained biases": {"bias": "all"},
}


@pytest.mark.parametrize("name", PLAIN)
def test_fresh_lora_is_idle(name: str, small_models: Any) -> None:
    assert adapter_is_noop(_with(small_models, **PLAIN[name]))


@pytest.mark.parametrize("options", [{}, {"target_modules": ["embed_tokens"]}])
def test_one_number_that_is_not_zero_is_found(options: dict[str, Any], small_models: Any) -> None:
    """Of the last adapter; the model's outputs may not show it."""
    model = _with(small_models, **options)
    tensors = [tensor for name, tensor in model.named_parameters() if "lora_B" in name or "lora_embedding_A" in name]
    with torch.no_grad():
        tensors[-1].view(-1)[-1] = 1e-30
    assert not adapter_is_noop(model)


def test_random_ones_are_not_idle(small_models: Any) -> None:
    assert not adapter_is_noop(_with(small_models, init_lora_weights=False))


MORE: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "saved whole": {"modules_to_save": ["lm_head"]},
    "bias": {"lora_bias": True},
    "other kind": {"config": IA3Config(target_modules=["k_proj"], feedforward_modules=[])},
}


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("name", MORE)
def test_more_than_plain_lora_is_not_idle(name: str, small_models: Any) -> None:
    assert not adapter_is_noop(_with(small_models, **MORE[name]))
