"""Detects from the weights whether LoRA adapters change a model's outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper


def adapter_is_noop(model: Any) -> bool:
    """Whether all adapters are plain LoRA layers that add zero.

    Other adapters (DoRA, IA3, layers saved whole, LoRA biases) count as changing the model. Comparing two forward
    passes would take 0.85 CPU seconds, and two short texts do not show every change.

    Args:
        model: a PeftModel.
    """
    layers = [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    if not layers or not all(_is_plain(layer) for layer in layers):
        return False
    return all(_is_zero(left) or _is_zero(right) for layer in layers for left, right in _pairs(layer))


def _is_plain(layer: Any) -> bool:
    """Whether a layer only adds the product of two matrices; DoRA and modules_to_save do more."""
    return isinstance(layer, LoraLayer) and not (layer.lora_variant or layer.merged or any(layer.lora_bias.values()))


def _pairs(layer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The two matrices of each active adapter."""
    for name in layer.active_adapters:
        if name in layer.lora_A:
            yield layer.lora_A[name].weight, layer.lora_B[name].weight
        elif name in layer.lora_embedding_A:
            yield layer.lora_embedding_A[name], layer.lora_embedding_B[name]


def _is_zero(matrix: torch.Tensor) -> bool:
    return not bool(matrix.any())
