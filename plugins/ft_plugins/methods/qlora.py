"""Low-rank adapters beside quantised weights, through bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ft_plugins.methods.lora import Lora, LoraOptions
from ftcore.api.components import OptionGroup

if TYPE_CHECKING:
    from ftcore.api.plan import Plan
    from ftcore.resources.memory_model import Architecture

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one when they are quantised themselves (bitsandbytes' own)."""


class QloraOptions(LoraOptions):
    """How the frozen weights are kept."""

    quantization_bit: Literal[4, 8] = 4
    """Bits of a frozen weight; `lora` with this option is this method."""
    quantization_method: Literal["bnb"] = "bnb"
    """bitsandbytes; models that another library has quantised already train with lora."""
    quantization_type: Literal["nf4", "fp4"] = "nf4"
    """What the 16 values of 4 bits are: quantiles of a normal distribution, or small floating-point numbers."""
    double_quantization: bool = True
    """Quantise the scales of 4-bit blocks as well, 0.4 bits less per weight."""


class Qlora(Lora):
    """Quantises the linear layers but the head when the model is loaded, and trains adapters beside them, in float32.

    Source: QLoRA, https://arxiv.org/abs/2305.14314, and for 8 bits LLM.int8(), https://arxiv.org/abs/2208.07339.
    """

    Options = QloraOptions
    quantizes: ClassVar[bool] = True

    def resolve(self, values: Mapping[str, Any]) -> str:
        """Itself."""
        return self.name

    def load_kwargs(self, plan: Plan) -> dict[str, Any]:
        """bitsandbytes' configuration, so that layers are quantised one by one as they are read."""
        import torch
        from transformers import BitsAndBytesConfig

        options = plan.method.options
        assert isinstance(options, QloraOptions)
        if options.quantization_bit == 8:
            return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options.quantization_type,
            bnb_4bit_use_double_quant=options.double_quantization,
            bnb_4bit_compute_dtype=getattr(torch, plan.precision.compute),
        )
        return {"quantization_config": config}

    def count(self, architecture: Architecture, options: OptionGroup, width: int = 4) -> tuple[float, int]:
        """Linear layers in bits with their scales, the rest as it is, and one layer's numbers at a time."""
        assert isinstance(options, QloraOptions)
        _, trained = super().count(architecture, options, width)
        weights = architecture.linear_parameters
        if options.quantization_bit == 8:
            stored = weights + 4.0 * sum(size_out * count for _, _, size_out, count in architecture.linears)
        else:
            scale = 1 + 4 / NESTED_BLOCK if options.double_quantization else 4.0
            stored = weights * (0.5 + scale / BLOCK)
        largest = max(size_in * size_out for _, size_in, size_out, _ in architecture.linears)
        return stored + width * (architecture.parameters - weights) + 4.0 * largest, trained
