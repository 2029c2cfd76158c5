"""The value head: a linear layer on the policy's hidden states, or on those of a separate copy of the policy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ftcore.errors import RunError
from ftcore.training.attention import varlen
from ftcore.training.attention.kernel import AttentionKernel
from ftcore.training.batching.collators import Batch
from ftcore.training.forward.causal_lm import hidden_states


class ValueHead(torch.nn.Linear):
    """Values ``[T]`` of the states at a batch's labels, initialised to 0.

    Args:
        size: hidden size H.
        backbone: a decoder trained with the head, whose hidden states it reads; None for the policy's hidden states.
        kernels: the backend's, for the attention of the backbone.
        packed: whether the backbone takes sequences end to end, as the policy does.
    """

    def __init__(
        self, size: int, backbone: Any = None, kernels: Sequence[AttentionKernel] = (), *, packed: bool = False
    ) -> None:
        super().__init__(size, 1)
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)
        self.backbone, self.kernels, self.packed = backbone, kernels, packed
        if backbone is not None and packed:
            backbone.set_attn_implementation(varlen.NAME)

    def forward(self, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
        """Values of a batch on the device, given the policy's hidden states ``[T, H]``."""
        if self.backbone is not None:
            hidden = hidden_states(self.backbone, batch, self.kernels, packed=self.packed)
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.to(self.weight.dtype))[:, 0]

    def trained(self) -> dict[str, torch.Tensor]:
        """The trained tensors by name, sharing memory."""
        return {name: tensor.detach().contiguous() for name, tensor in self.named_parameters() if tensor.requires_grad}

    def load(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Copies in place what `trained` returned.

        Raises:
            RunError: names or shapes differ.
        """
        own = self.trained()
        differing = [name for name in sorted({*own, *saved}) if _shape(own.get(name)) != _shape(saved.get(name))]
        if differing:
            raise RunError(f"the checkpoint's value head does not fit this run: {differing[0]} differs")
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def copied_decoder(model: Any) -> Any:
    """A copy of a model's decoder and its adapters. Trained parameters are copied, frozen ones and buffers shared."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = inner.get_decoder()
    shared = [*(tensor for tensor in decoder.parameters() if not tensor.requires_grad), *decoder.buffers()]
    return copy.deepcopy(decoder, {id(tensor): tensor for tensor in shared})


def _shape(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
