"""Writes a model as one GGUF file, for llama.cpp and Ollama.

Names, metadata and the order of rows in query and key weights are those of llama.cpp's ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import pi
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ftcore.api.plan import Plan
    from ftcore.data.chat_template.renderer import Renderer

ROTATED_PAIRS = frozenset({"llama"})
"""Architectures whose query and key rows llama.cpp expects in interleaved rotary order."""
ARCHITECTURES = (*ROTATED_PAIRS, "qwen2", "qwen3")
_BITS = {"f32": 32.0, "f16": 16.0, "q8_0": 8.5}
_BLOCK = 32
"""Block size of q8_0; rows that it does not divide are stored in float16."""


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, prepared before the weights are loaded.

    Args:
        kind: ``f32``, ``f16`` or ``q8_0``.
        config: configuration of the model.
        vocabulary: tokens, merges and special ids in GGUF's form.
    """

    kind: str
    config: Mapping[str, Any]
    vocabulary: Any

    @classmethod
    def of(cls, plan: Plan, tokenizer: Any) -> GgufFile:
        """The file for a plan.

        Raises:
            UsageError: the model is not supported; with all reasons.
        """
        from ftcore.export.gguf_vocabulary import read_vocabulary

        where = plan.where("export_gguf")
        try:
            import gguf  # noqa: F401
        except ModuleNotFoundError as error:
            hint = "pip install gguf, or remove export_gguf"
            raise UsageError(Problem("export_gguf requires the package gguf", where, hint)) from error
        config = dict(plan.config or {})
        reasons = _unsupported(config) if config else []
        vocabulary, reason = read_vocabulary(tokenizer)
        reasons += [reason] if reason else []
        if reasons:
            hint = f"remove export_gguf; supported architectures: {', '.join(ARCHITECTURES)}"
            raise UsageError([Problem(f"no GGUF file can be written: {reason}", where, hint) for reason in reasons])
        return cls(str(plan.export.export_gguf), config, vocabulary)

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"model-{self.kind}.gguf"

    def bytes(self, model: Any) -> int:
        """Estimated size of the file in bytes."""
        return int(model.num_parameters() * _BITS[self.kind] / 8)

    def write(self, model: Any, renderer: Renderer | None, folder: Path) -> None:
        """Writes the file tensor by tensor, with one converted tensor in memory at a time."""
        import gguf

        config = model.config.to_dict()
        if reasons := _unsupported(config):
            raise UsageError([Problem(f"no GGUF file can be written: {reason}") for reason in reasons])
        writer = gguf.GGUFWriter(folder / self.name, str(config["model_type"]))
        _write_metadata(writer, config, self.kind)
        self.vocabulary.write(writer, model.config.vocab_size, renderer)
        tensors = list(_tensors(model, self.kind))
        for tensor in tensors:
            writer.add_tensor_info(tensor.name, tensor.shape, tensor.numpy_dtype, tensor.bytes, tensor.raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.data())
        writer.close()


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        return [f"architecture {kind} is not supported"]
    reasons = []
    rope = _rope(config)
    if (scaling := rope["rope_type"]) not in ("default", "linear", "yarn") and "low_freq_factor" not in rope:
        reasons.append(f"rope scaling {scaling} is not supported")
    if config.get("use_sliding_window"):
        reasons.append("sliding-window attention is not supported for this architecture in llama.cpp")
    if config.get("hidden_act", "silu") != "silu":
        reasons.append(f"activation {config['hidden_act']} is not supported, only silu")
    return reasons


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary parameters of transformers 5 and of older files."""
    found = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    found.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    found["rope_type"] = found.get("rope_type") or found.get("type") or "default"
    return found


def _write_metadata(writer: Any, config: Mapping[str, Any], kind: str) -> None:
    import gguf

    types = gguf.LlamaFileType
    heads, rope = config["num_attention_heads"], _rope(config)
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name("model")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type({"f32": types.ALL_F32, "f16": types.MOSTLY_F16, "q8_0": types.MOSTLY_Q8_0}[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope["rope_type"] == "yarn":
        length = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(length)


@dataclass(frozen=True)
class _Tensor:
    """A tensor to write."""

    name: str
    source: torch.Tensor
    kind: str
    heads: int = 0
    """Number of heads for interleaved rotary order; 0 to keep the order."""

    @property
    def stored(self) -> str:
        """The stored kind: float32 for vectors, float16 for rows that q8_0 does not divide."""
        if self.source.ndim == 1:
            return "f32"
        return "f16" if self.kind == "q8_0" and self.source.shape[-1] % _BLOCK else self.kind

    @property
    def raw(self) -> Any:
        """The type in the gguf package."""
        import gguf

        return {"f32": None, "f16": None, "q8_0": gguf.GGMLQuantizationType.Q8_0}[self.stored]

    @property
    def numpy_dtype(self) -> Any:
        """The numpy dtype of the data in the file."""
        import numpy as np

        return np.dtype({"f32": np.float32, "f16": np.float16, "q8_0": np.uint8}[self.stored])

    @property
    def shape(self) -> tuple[int, ...]:
        """In elements of `numpy_dtype`: q8_0 has 34 bytes for 32 weights."""
        shape = tuple(self.source.shape)
        return (*shape[:-1], shape[-1] // _BLOCK * 34) if self.stored == "q8_0" else shape

    @property
    def bytes(self) -> int:
        """The size in the file, in bytes."""
        count = 1
        for length in self.shape:
            count *= length
        return count * int(self.numpy_dtype.itemsize)

    def data(self) -> np.ndarray[Any, Any]:
        """The data to write."""
        import gguf
        import numpy as np

        values = self.source.detach().float().cpu()
        if self.heads:
            pairs = values.reshape(self.heads, 2, values.shape[0] // self.heads // 2, *values.shape[1:])
            values = pairs.transpose(1, 2).reshape(values.shape)
        array = np.ascontiguousarray(values.numpy())
        if self.stored == "q8_0":
            return gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
        return array.astype(self.numpy_dtype)


def _tensors(model: Any, kind: str) -> Iterator[_Tensor]:
    """All weights with their GGUF names, without a head that is tied to the embedding."""
    import gguf
    import torch

    config = model.config
    architecture = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    turned = config.model_type in ROTATED_PAIRS
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, f"{name} has no name in GGUF"
        match = re.search(r"\.(q|k)_proj\.", name) if turned else None
        heads = 0
        if match:
            heads = config.num_attention_heads if match[1] == "q" else config.num_key_value_heads
        yield _Tensor(found, tensor, kind, heads)
    if "low_freq_factor" in (rope := _rope(config.to_dict())):
        factors = _divisors(config.head_dim or config.hidden_size // config.num_attention_heads, rope)
        yield _Tensor("rope_freqs.weight", torch.tensor(factors), "f32")


def _divisors(width: int, rope: Mapping[str, Any]) -> list[float]:
    """The frequency divisors of Llama 3 (transformers, modeling_rope_utils.py: _compute_llama3_parameters)."""
    factors = []
    low, high, length = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    for place_ in range(0, width, 2):
        wavelength = 2 * pi * float(rope["rope_theta"]) ** (place_ / width)
        if wavelength < length / high:
            factors.append(1.0)
        elif wavelength > length / low:
            factors.append(float(rope["factor"]))
        else:
            smooth = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return factors
