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
"""Weights per scale, and scales per second-level scale with double quantisation (bitsandbytes' values)."""


class QloraOptions(LoraOptions):
    """Quantisation of the frozen weights."""

    quantization_bit: Literal[4, 8] = 4
    """Bits per frozen weight. ``finetuning_type: lora`` with this option is qlora."""
    quantization_method: Literal["bnb"] = "bnb"
    """Library: bitsandbytes. Models that another library has quantised train with lora."""
    quantization_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values of 4 bits: quantiles of a normal distribution (nf4), or 4-bit floating-point numbers (fp4)."""
    double_quantization: bool = True
    """Quantise the scales of 4-bit blocks too, which saves 0.4 bits per weight."""


class Qlora(Lora):
    """Quantises the linear layers except the head on loading, and trains adapters beside them in float32.

    Source: QLoRA, https://arxiv.org/abs/2305.14314, and for 8 bits LLM.int8(), https://arxiv.org/abs/2208.07339.
    """

    Options = QloraOptions
    quantizes: ClassVar[bool] = True

    def resolve(self, values: Mapping[str, Any]) -> str:
        """This method."""
        return self.name

    def load_kwargs(self, plan: Plan) -> dict[str, Any]:
        """bitsandbytes' configuration: transformers quantises each layer as it reads it."""
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
        """Quantised linear layers with their scales, all other weights, and one dequantised layer."""
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
