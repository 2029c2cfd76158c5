"""One call of attention over a packed row, and what a backend's kernel for it looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ftcore.training.attention.layout import RowLayout


@dataclass(frozen=True, slots=True)
class Rule:
    """Settings of a call, the same for all its sequences.

    Args:
        causal: whether a token attends only to tokens up to itself.
        dropout: probability of dropping a weight.
        scale: factor on the scores; None for ``1 / sqrt(head size)``.
        window: size of the sliding window, the token included; None for no window.
        softcap: scores become ``softcap * tanh(score / softcap)`` (Gemma 2); None for no cap.
        sinks: ``[heads]``, one logit per head in the softmax's denominator, without a value (gpt-oss).
    """

    causal: bool
    dropout: float
    scale: float | None
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None

    def band(self, queries: int, keys: int, device: torch.device) -> torch.Tensor:
        """``[queries, keys]``, true where a query attends to a key; the last query is at the last key."""
        place = torch.arange(keys - queries, keys, device=device)[:, None]
        key = torch.arange(keys, device=device)[None]
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=device)
        if self.causal:
            allowed &= key <= place
        if self.window is not None:
            allowed &= key > place - self.window
            if not self.causal:
                allowed &= key < place + self.window
        return allowed


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """Attention of all sequences of a packed row, each over its prefix and itself.

    Args:
        query: ``[1, heads, N, size]``.
        key: ``[1, key heads, N, size]``; the number of heads is a multiple of it.
        value: ``[1, key heads, N, value size]``.
        rule: settings.
        layout: where the sequences are.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    rule: Rule
    layout: RowLayout

    @property
    def is_plain_causal(self) -> bool:
        """Whether attention is causal without dropout, effective window, softcap or sinks."""
        rule = self.rule
        if not rule.causal or rule.dropout or rule.softcap is not None or rule.sinks is not None:
            return False
        return rule.window is None or rule.window >= max(self.layout.keys, default=0)


class AttentionKernel(Protocol):
    """A way to compute calls of attention; part of a backend's runtime (`ftcore.training.backend`)."""

    @property
    def name(self) -> str:
        """In messages and tests."""

    @property
    def splits_rows(self) -> bool:
        """Whether the kernel computes a row that is one part of a longer one (`RowLayout.kv_part`)."""

    def supports(self, call: AttentionCall) -> bool:
        """Whether `forward` computes this call, with its gradients: what is accepted here must be right.

        It is asked in every call, so it should be cheap, and on a GPU it should not read tensors.
        """

    def forward(self, call: AttentionCall) -> torch.Tensor:
        """The output ``[1, N, heads, value size]``, differentiable by query, key and value."""


class UnsupportedAttentionError(Exception):
    """The model's attention needs a feature that no kernel supports."""
