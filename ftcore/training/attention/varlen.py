"""Attention over packed sequences, registered with transformers as ``ft_varlen``.

A batch is one row ``[1, N]``; ``cu_seq_lens_q`` (transformers' FlashAttentionKwargs) says where each sequence starts.
With a mask transformers' sdpa computes all S x S scores. One causal call per sequence was 5 to 39 times faster on a CPU
(S 1024 to 4096, 9 query and 3 key heads of 64, torch 2.13), and sequences cannot attend to each other. Without
``cu_seq_lens_q``, as in generation, it is ordinary attention with the mask of transformers. ``prefixes`` lists the
tokens of shared prefixes. ``attention_kernels`` are those of the run's backend: the first one that supports a call
computes it, and plain torch where none does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from ftcore.training.attention.kernel import AttentionCall, AttentionKernel, Rule, UnsupportedAttentionError
from ftcore.training.attention.layout import Prefixes, RowLayout, RowPart
from ftcore.training.attention.plain import PLAIN, attend

NAME = "ft_varlen"


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    prefixes: Prefixes | None = None,
    kv_part: RowPart | None = None,
    attention_kernels: Sequence[AttentionKernel] = (),
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' AttentionInterface calls it.

    Args:
        query: ``[1, heads, N, size]``; or ``[B, heads, S, size]`` without ``cu_seq_lens_q``.
        key: ``[1, key heads, N, size]``.
        value: ``[1, key heads, N, value size]``.
        attention_mask: None where ``cu_seq_lens_q`` is given.
        cu_seq_lens_q: ``[sequences + 1]``, where each sequence starts, and N.
        max_length_q: length of the longest sequence.
        prefixes: for each sequence the ranges of its prefix, in sequences before it; None for no prefixes.
        kv_part: where another worker computes another part of the row.
        attention_kernels: in order of preference.

    Returns:
        ``[1, N, heads, value size]`` and None.

    Raises:
        UnsupportedAttentionError: for a position bias, for prefixes without causal attention, and for a part of a row
            that no kernel computes.
    """
    if kwargs.get("position_bias") is not None:
        raise UnsupportedAttentionError(f"{type(module).__name__} adds a position bias to its attention scores")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    rule = Rule(causal, dropout, scaling, sliding_window, softcap, s_aux)
    if cu_seq_lens_q is None:
        return attend(query, key, value, rule, attention_mask).transpose(1, 2).contiguous(), None
    if prefixes and not causal:
        raise UnsupportedAttentionError(f"{type(module).__name__} is not causal: a prompt would see the answer")
    call = AttentionCall(query, key, value, rule, RowLayout(cu_seq_lens_q, prefixes, max_length_q, kv_part))
    kernel = next((kernel for kernel in (*attention_kernels, PLAIN) if kernel.supports(call)), None)
    if kernel is None:
        raise UnsupportedAttentionError(f"{type(module).__name__} cannot attend to keys of another part of the row")
    return kernel.forward(call), None


class RecordingKernel:
    """A kernel that notes each call that it computes.

    Args:
        kernel: the kernel.
        calls: to which the kernel is appended in each call.
    """

    def __init__(self, kernel: AttentionKernel, calls: list[AttentionKernel]) -> None:
        self.kernel, self.calls = kernel, calls
        self.name, self.splits_rows, self.supports = kernel.name, kernel.splits_rows, kernel.supports

    def forward(self, call: AttentionCall) -> torch.Tensor:
        """The kernel's output."""
        self.calls.append(self.kernel)
        return self.kernel.forward(call)


def recording(kernels: Sequence[AttentionKernel], calls: list[AttentionKernel]) -> tuple[AttentionKernel, ...]:
    """Kernels for ``attention_kernels``, plain torch included, that append to ``calls`` the kernel of each call."""
    return tuple(RecordingKernel(kernel, calls) for kernel in (*kernels, PLAIN))


def packed_mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """None for packed rows, which have no padding mask; else sdpa's boolean mask."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, packed_mask)
