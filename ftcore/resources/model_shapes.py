"""Counts a decoder's linear layers and parameters from config.json, without building the model.

The counts equal those of transformers 5.23's own classes exactly (tests/resources/test_memory_model.py builds each on
torch's meta device). Architectures that are not in `LAYOUTS` are unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a model type differs from Llama. A string names the field of the config that holds the value.

    Args:
        norms: norm weights of the hidden size in each layer.
        final_norm: whether a norm weight follows the last layer.
        norms_before: whether the inputs of linear layers come from a norm.
        qkv_bias: bias of the query, key and value projections.
        biased: default of the field for this bias.
        out_bias: bias of the output projection.
        mlp_bias: bias of the feed-forward layers.
        qk_norm: ``head`` if queries and keys are normed per head, ``full`` if all heads are normed at once.
        fused_qkv: one projection ``qkv_proj`` instead of three.
        fused_mlp: one projection ``gate_up_proj`` instead of two.
        tied: whether embedding and head share one matrix, by default.
        head_dim: default head size; None for ``hidden_size / heads``.
        experts: fields with the number of experts; the first one that exists counts (transformers 5 renamed some).
        expert_size: field of an expert's intermediate size.
    """

    norms: int = 2
    final_norm: bool = True
    norms_before: bool = True
    qkv_bias: bool | str = False
    biased: bool = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: str = ""
    fused_qkv: bool = False
    fused_mlp: bool = False
    tied: bool = False
    head_dim: int | None = None
    experts: tuple[str, ...] = ()
    expert_size: str = "intermediate_size"


_BIAS: dict[str, Any] = {"qkv_bias": "attention_bias", "out_bias": "attention_bias"}
_LLAMA = Layout(**_BIAS, mlp_bias="mlp_bias")

LAYOUTS: Mapping[str, Layout] = {
    "llama": _LLAMA,
    "smollm3": Layout(**_BIAS, mlp_bias="mlp_bias", tied=True),
    "granite": _LLAMA,
    "mistral": Layout(),
    "mixtral": Layout(experts=("num_local_experts",)),
    "qwen2": Layout(qkv_bias=True),
    "qwen3": Layout(**_BIAS, qk_norm="head", head_dim=128),
    "qwen3_moe": Layout(
        **_BIAS, qk_norm="head", experts=("num_experts", "num_local_experts"), expert_size="moe_intermediate_size"
    ),
    "gemma": Layout(**_BIAS, tied=True, head_dim=256),
    "gemma2": Layout(**_BIAS, norms=4, tied=True, head_dim=256),
    "gemma3_text": Layout(**_BIAS, norms=4, qk_norm="head", tied=True, head_dim=256),
    "phi3": Layout(fused_qkv=True, fused_mlp=True),
    "glm": Layout(qkv_bias="attention_bias", biased=True, fused_mlp=True, head_dim=128),
    "glm4": Layout(norms=4, qkv_bias="attention_bias", biased=True, fused_mlp=True, head_dim=128),
    "olmo": Layout(**_BIAS, norms=0, final_norm=False, norms_before=False),
    "olmo2": Layout(**_BIAS, qk_norm="full", norms_before=False),
    "seed_oss": Layout(
        qkv_bias="attention_bias", biased=True, out_bias="attention_out_bias", mlp_bias="mlp_bias", head_dim=128
    ),
}

Linear = tuple[str, int, int, int]
"""Name inside a layer, input size, output size, and the number of such layers in the model."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shapes of a decoder.

    Args:
        model_type: as in config.json.
        linears: every ``nn.Linear`` but the head, by name; without experts, which transformers stores as 3-D tensors.
        parameters: parameters of the whole model; a head tied to the embedding counts once.
        norms: norm weights of the hidden size in each layer.
        norms_before: whether the inputs of linear layers come from an RMS norm.
        qk_norm: whether queries and keys are normed.
        experts: experts per layer; 0 for a dense model.
        active_experts: experts per token.
        expert_size: an expert's intermediate size.
        bytes_per_weight: bytes of a loaded weight (float32: 4).
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    linears: tuple[Linear, ...]
    parameters: int
    norms: int = 2
    norms_before: bool = True
    qk_norm: bool = False
    experts: int = 0
    active_experts: int = 0
    expert_size: int = 0
    bytes_per_weight: float = 4.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any], bytes_per_weight: float = 4.0) -> Architecture | None:
        """The architecture that a config.json describes; None if its model type is unknown."""
        layout = LAYOUTS.get(str(config.get("model_type")))
        needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        if layout is None or not all(isinstance(config.get(key), int) for key in needed):
            return None
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        experts = next((config[key] for key in layout.experts if config.get(key) is not None), 0)
        if experts and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
            return None  # dense and sparse layers mixed
        tied = config.get("tie_word_embeddings")
        shape: dict[str, Any] = {
            "model_type": config["model_type"],
            "hidden_size": hidden,
            "intermediate_size": config.get("intermediate_size") or 0,
            "layers": config["num_hidden_layers"],
            "heads": heads,
            "kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or layout.head_dim or hidden // heads,
            "vocab_size": config["vocab_size"],
            "tied": layout.tied if tied is None else bool(tied),
            "norms": layout.norms,
            "norms_before": layout.norms_before,
            "qk_norm": bool(layout.qk_norm),
            "experts": experts,
            "active_experts": (config.get("num_experts_per_tok") or 0) if experts else 0,
            "expert_size": (config.get(layout.expert_size) or 0) if experts else 0,
        }
        draft = cls(**shape, linears=(), parameters=0, bytes_per_weight=bytes_per_weight)
        linears = _linears(draft, layout)
        total = _parameters(draft, layout, config, linears)
        return cls(**shape, linears=linears, parameters=total, bytes_per_weight=bytes_per_weight)

    @property
    def query_size(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding, and of the head unless it is tied."""
        return self.vocab_size * self.hidden_size * (1 if self.tied else 2)

    @property
    def linear_parameters(self) -> int:
        """Weights of all `linears`, without biases."""
        return sum(size_in * size_out * count for _, size_in, size_out, count in self.linears)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        final_norm = self.hidden_size if self.norms else 0
        return (self.parameters - self.embedding_parameters - final_norm) // self.layers


def _linears(arch: Architecture, layout: Layout) -> tuple[Linear, ...]:
    hidden, queries, keys, inner = arch.hidden_size, arch.query_size, arch.key_size, arch.intermediate_size
    if layout.fused_qkv:
        sizes = [("qkv_proj", hidden, queries + 2 * keys)]
    else:
        sizes = [("q_proj", hidden, queries), ("k_proj", hidden, keys), ("v_proj", hidden, keys)]
    sizes.append(("o_proj", queries, hidden))
    if not arch.experts:
        if layout.fused_mlp:
            sizes.append(("gate_up_proj", hidden, 2 * inner))
        else:
            sizes += [("gate_proj", hidden, inner), ("up_proj", hidden, inner)]
        sizes.append(("down_proj", inner, hidden))
    return tuple((*size, arch.layers) for size in sizes)


def _parameters(arch: Architecture, layout: Layout, config: Mapping[str, Any], linears: tuple[Linear, ...]) -> int:
    def has(bias: bool | str, default: bool = False) -> bool:
        return bool(config.get(bias, default)) if isinstance(bias, str) else bias

    qkv_bias, out_bias, mlp_bias = has(layout.qkv_bias, layout.biased), has(layout.out_bias), has(layout.mlp_bias)
    hidden = arch.hidden_size
    layer = layout.norms * hidden
    for name, size_in, size_out, _ in linears:
        bias = out_bias if name == "o_proj" else qkv_bias if name in _INTO_ATTENTION else mlp_bias
        layer += size_in * size_out + size_out * bias
    layer += {"": 0, "head": 2 * arch.head_dim, "full": arch.query_size + arch.key_size}[layout.qk_norm]
    layer += arch.experts * (3 * hidden * arch.expert_size + hidden)  # with the router's row
    return arch.layers * layer + arch.embedding_parameters + hidden * layout.final_norm


_INTO_ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj")
