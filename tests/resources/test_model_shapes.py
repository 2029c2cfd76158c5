"""What is read off config.json equals what transformers builds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ftcore.resources.model_shapes import LAYOUTS, Architecture

SMALL: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "biased": {"attention_bias": True, "mlp_bias": True, "attention_out_bias": True},
    "wide heads": {"head_dim": 20},
}


def built(model_type: str, variant: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The config as saved, and the model without memory."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    experts = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
    sparse = bool(LAYOUTS[model_type].experts)
    config = CONFIG_MAPPING[model_type](**(SMALL | (experts if sparse else {}) | variant))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return json.loads(config.to_json_string()), model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_type", LAYOUTS)
def test_counts_equal_the_built_model(model_type: str, variant: str) -> None:
    import torch

    config, model = built(model_type, VARIANTS[variant])
    architecture = Architecture.from_config(config)
    assert architecture is not None
    assert architecture.parameters == model.num_parameters()
    found: dict[tuple[str, int, int], int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            key = (name.rpartition(".")[2], module.in_features, module.out_features)
            found[key] = found.get(key, 0) + 1
    assert {linear[:3]: linear[3] for linear in architecture.linears} == found
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    assert architecture.layer_parameters == layer


def test_smollm2() -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    architecture = Architecture.from_config(config)
    assert architecture is not None
    assert architecture.parameters == 134_515_008
    assert architecture.linear_parameters == 106_168_320
    assert architecture.embedding_parameters == 28_311_552
    assert architecture.linears[1] == ("k_proj", 576, 192, 30)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "mamba", **SMALL},
        {"model_type": "llama", "hidden_size": 64},
        {"model_type": "qwen3_moe", "num_experts": 4, "mlp_only_layers": [1], **SMALL},
        {"model_type": "qwen3_moe", "num_experts": 4, "decoder_sparse_step": 2, **SMALL},
        {"model_type": "llama", "text_config": SMALL},
    ],
)
def test_what_is_not_known_is_not_guessed(config: dict[str, Any]) -> None:
    assert Architecture.from_config(config) is None
