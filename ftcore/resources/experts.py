"""Counts the linear layers and experts of a mixture-of-experts model from config.json, without building the model.

transformers 5 stores experts as 3-D tensors, not as linear layers. The counts equal those of its own classes
(tests/resources/test_experts.py builds each on torch's meta device). Model types that are not in `LAYOUTS` are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ftcore.resources.model_shapes import Architecture, Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a model type differs from Mixtral. Strings are fields of the config, or module paths in a layer.

    Args:
        attention: ``gqa``, ``mla`` (DeepSeek) or ``hybrid`` (Qwen 3 Next).
        gated: whether the attention output is gated by a projection of the queries' width.
        count: fields with the number of experts; the first one that exists counts.
        size: field of an expert's intermediate size.
        dense: layers without experts: a field with the number of first ones, or another rule of `_dense`.
        dense_size: field of their intermediate size.
        shared: path of the shared expert.
        shared_size: field of its intermediate size.
        shared_count: field of its size in experts, instead.
        shared_gate: path of its gate.
        router: path of a router that is a linear layer.
        own_router: whether this router is a class of its own, which bitsandbytes does not quantise.
    """

    attention: str = "gqa"
    gated: bool = False
    count: tuple[str, ...] = ("num_local_experts", "num_experts", "n_routed_experts")
    size: str = "intermediate_size"
    dense: str = ""
    dense_size: str = "intermediate_size"
    shared: str = ""
    shared_size: str = ""
    shared_count: str = ""
    shared_gate: str = ""
    router: str = ""
    own_router: bool = False


_OWN: dict[str, Any] = {"size": "moe_intermediate_size"}
_SHARED: dict[str, Any] = {**_OWN, "shared": "mlp.shared_experts", "shared_count": "n_shared_experts"}
_MLA: dict[str, Any] = {**_SHARED, "attention": "mla"}
_NUM_SHARED: dict[str, Any] = {**_SHARED, "shared_count": "num_shared_experts"}
_QWEN: dict[str, Any] = {**_OWN, "dense": "decoder_sparse_step"}
_QWEN_SHARED: dict[str, Any] = {"shared": "mlp.shared_expert", "shared_size": "shared_expert_intermediate_size"}
_QWEN_GATED: dict[str, Any] = {**_QWEN_SHARED, "shared_gate": "mlp.shared_expert_gate"}

LAYOUTS: Mapping[str, Layout] = {
    "mixtral": Layout(),
    "minimax_m2": Layout(),
    "olmoe": Layout(),
    "flex_olmo": Layout(),
    "gpt_oss": Layout(),
    "granitemoe": Layout(),
    "granitemoe_swa": Layout(),
    "phimoe": Layout(router="mlp.router", own_router=True),
    "mellum": Layout(**_OWN, dense="mlp_layer_types"),
    "qwen3_moe": Layout(**_QWEN),
    "qwen2_moe": Layout(**_QWEN, **_QWEN_GATED),
    "flint": Layout(**_QWEN, **_QWEN_SHARED),
    "qwen3_next": Layout(**_QWEN, **_QWEN_GATED, attention="hybrid"),
    "qwen3_5_moe_text": Layout(**_OWN, **_QWEN_GATED, attention="hybrid"),
    "glm4_moe": Layout(**_SHARED, dense="first_k_dense_replace"),
    "dots1": Layout(**_SHARED, dense="first_k_dense_replace"),
    "solar_open": Layout(**_SHARED),
    "exaone_moe": Layout(**_NUM_SHARED, dense="mlp_layer_types"),
    "hy_v3": Layout(**_NUM_SHARED, dense="mlp_layer_types"),
    "afmoe": Layout(**_NUM_SHARED, dense="num_dense_layers", gated=True, router="mlp.router.gate"),
    "beam": Layout(**_OWN, dense="mlp_layer_types", gated=True),
    "kolibri1": Layout(**_OWN, shared="mlp.shared_experts", shared_size="shared_expert_intermediate_size"),
    "ernie4_5_moe": Layout(
        **{**_SHARED, "shared_count": "moe_num_shared_experts"},
        dense="moe_layer_start_index",
        count=("moe_num_experts", "num_experts"),
    ),
    "hunyuan_v1_moe": Layout(shared="mlp.shared_mlp", shared_size="intermediate_size", router="mlp.gate.wg"),
    "llama4_text": Layout(
        dense="moe_layers",
        dense_size="intermediate_size_mlp",
        shared="feed_forward.shared_expert",
        shared_size="intermediate_size",
        router="feed_forward.router",
        own_router=True,
    ),
    "deepseek_v2": Layout(**_MLA, dense="first_k_dense_replace"),
    "deepseek_v3": Layout(**_MLA, dense="first_k_dense_replace"),
    "axk1": Layout(**_MLA, dense="mlp_layer_types"),
    "glm4_moe_lite": Layout(**_MLA, dense="mlp_layer_types"),
}


@dataclass(frozen=True, slots=True)
class Matrices:
    """The weights of a decoder, without embedding and head.

    Args:
        linears: linear layers: path in the layer (or its end), input size, output size, count.
        experts: number of weights in experts.
        odd: number of weights in linear layers of a class of their own.
    """

    linears: tuple[Linear, ...]
    experts: int = 0
    odd: int = 0

    @property
    def linear(self) -> int:
        """Number of weights in linear layers."""
        return sum(size_in * size_out * count for _, size_in, size_out, count in self.linears)


def matrices(config: Mapping[str, Any]) -> Matrices | None:
    """The weights of the model that a config.json describes; None if its model type is unknown."""
    layout = LAYOUTS.get(str(config.get("model_type")))
    if layout is None:
        dense = Architecture.from_config(config)
        return Matrices(dense.linears) if dense and not dense.experts else None
    try:
        return _matrices(config, layout)
    except (KeyError, TypeError, ZeroDivisionError):  # a required field is missing or null
        return None


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, or a part of it, has a number of experts."""
    return any(
        has_experts(value) if isinstance(value, Mapping) else "expert" in name and type(value) is int and value > 1
        for name, value in config.items()
    )


def _matrices(config: Mapping[str, Any], layout: Layout) -> Matrices:
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    count = next(config[field] for field in layout.count if field in config)
    size, sparse = config[layout.size], layers - _dense(config, layout.dense, layers)
    linears = [*_ATTENTION[layout.attention](config)]
    if layout.gated:
        linears.append(("self_attn.gate_proj", hidden, config["num_attention_heads"] * _head_dim(config), layers))
    linears += _network("mlp", hidden, config[layout.dense_size] if sparse < layers else 0, layers - sparse)
    if layout.shared:
        inner = config[layout.shared_size] if layout.shared_size else config[layout.shared_count] * size
        linears += _network(layout.shared, hidden, inner, sparse)
    if layout.shared_gate:
        linears.append((layout.shared_gate, hidden, 1, sparse))
    if layout.router:
        linears.append((layout.router, hidden, count, sparse))
    return Matrices(
        tuple(linear for linear in linears if linear[3]),
        experts=3 * count * hidden * size * sparse,
        odd=hidden * count * sparse * layout.own_router,
    )


def _network(path: str, hidden: int, inner: int, count: int) -> list[Linear]:
    into = [(f"{path}.{name}", hidden, inner, count) for name in ("gate_proj", "up_proj")]
    return [*into, (f"{path}.down_proj", inner, hidden, count)] if inner else []


def _dense(config: Mapping[str, Any], rule: str, layers: int) -> int:
    """Number of layers without experts."""
    if not rule:
        return 0
    if rule == "mlp_layer_types":
        return sum(kind != "sparse" for kind in config[rule])
    if rule == "moe_layers":
        return layers - len(config[rule])
    if rule == "decoder_sparse_step":
        step, only = config.get(rule, 1), config.get("mlp_only_layers") or ()
        return sum(layer in only or (layer + 1) % step != 0 for layer in range(layers))
    if rule == "moe_layer_start_index":
        start, end, step = config[rule], config["moe_layer_end_index"], config["moe_layer_interval"]
        last = layers - 1 if end == -1 else end
        return sum((layer + 1) % step != 0 or not start <= layer <= last for layer in range(layers))
    return min(int(config[rule]), layers)


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _grouped(config: Mapping[str, Any], layers: int | None = None, doubled: bool = False) -> Iterator[Linear]:
    """Grouped-query attention; with ``doubled`` the query projection also computes a gate."""
    hidden, heads, count = config["hidden_size"], config["num_attention_heads"], layers
    count = config["num_hidden_layers"] if layers is None else layers
    queries, keys = heads * _head_dim(config), (config.get("num_key_value_heads") or heads) * _head_dim(config)
    yield "self_attn.q_proj", hidden, queries * (1 + doubled), count
    yield "self_attn.k_proj", hidden, keys, count
    yield "self_attn.v_proj", hidden, keys, count
    yield "self_attn.o_proj", queries, hidden, count


def _latent(config: Mapping[str, Any]) -> Iterator[Linear]:
    """DeepSeek's multi-head latent attention: keys and values are projected from a latent vector."""
    hidden, heads, count = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    rope, plain, value = (config[name] for name in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    queries, rank = heads * (plain + rope), config["kv_lora_rank"]
    if config["q_lora_rank"] is None:
        yield "self_attn.q_proj", hidden, queries, count
    else:
        yield "self_attn.q_a_proj", hidden, config["q_lora_rank"], count
        yield "self_attn.q_b_proj", config["q_lora_rank"], queries, count
    yield "self_attn.kv_a_proj_with_mqa", hidden, rank + rope, count
    yield "self_attn.kv_b_proj", rank, heads * (plain + value), count
    yield "self_attn.o_proj", heads * value, hidden, count


def _hybrid(config: Mapping[str, Any]) -> Iterator[Linear]:
    """Linear attention in most layers, gated attention in the others."""
    hidden, kinds = config["hidden_size"], config["layer_types"]
    full = sum(kind == "full_attention" for kind in kinds)
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = config["linear_num_value_heads"] * config["linear_value_head_dim"]
    heads, count = config["linear_num_value_heads"], len(kinds) - full
    if config["model_type"] == "qwen3_next":
        yield "linear_attn.in_proj_qkvz", hidden, 2 * keys + 2 * values, count
        yield "linear_attn.in_proj_ba", hidden, 2 * heads, count
    else:
        yield "linear_attn.in_proj_qkv", hidden, 2 * keys + values, count
        yield "linear_attn.in_proj_z", hidden, values, count
        yield "linear_attn.in_proj_b", hidden, heads, count
        yield "linear_attn.in_proj_a", hidden, heads, count
    yield "linear_attn.out_proj", values, hidden, count
    yield from _grouped(config, full, doubled=True)


_ATTENTION = {"gqa": _grouped, "mla": _latent, "hybrid": _hybrid}
