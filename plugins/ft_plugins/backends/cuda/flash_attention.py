"""flash-attention 2's kernel for sequences of many lengths."""

from __future__ import annotations

import torch
from transformers.utils import is_flash_attn_2_available

from ftcore.training.attention.kernel import AttentionCall
from ftcore.training.attention.layout import sequence_parts

MAX_SIZE = 256
"""Largest head size."""


class FlashAttention:
    """``flash_attn_varlen_func``, also over shared prefixes, with windows and softcaps."""

    name = "flash-attention 2"
    splits_rows = False

    def supports(self, call: AttentionCall) -> bool:
        """Half precision on CUDA, query, key and value of one size and dtype, no sinks, no part of a row."""
        tensors = (call.query, call.key, call.value)
        dtypes, sizes = {tensor.dtype for tensor in tensors}, {tensor.shape[-1] for tensor in tensors}
        alike = len(dtypes) == len(sizes) == 1 and dtypes <= {torch.float16, torch.bfloat16} and max(sizes) <= MAX_SIZE
        ordinary = call.rule.sinks is None and call.layout.kv_part is None
        return call.query.is_cuda and alike and ordinary and bool(is_flash_attn_2_available())

    def forward(self, call: AttentionCall) -> torch.Tensor:
        """See `ftcore.training.attention.kernel.AttentionKernel.forward`; the last query is at the last key."""
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

        query, key, value, rule, layout = call.query, call.key, call.value, call.rule, call.layout
        starts = key_starts = layout.starts.to(torch.int32)
        longest = most = layout.longest
        if layout.prefixes:
            key, value = (torch.cat(list(sequence_parts(tensor, layout)), 2) for tensor in (key, value))
            key_starts, most = torch.tensor([0, *layout.keys]).cumsum(0).to(starts), max(layout.keys)
        window = (-1, -1) if rule.window is None else (rule.window - 1, 0 if rule.causal else rule.window - 1)
        out: torch.Tensor = flash_attn_varlen_func(
            *(tensor[0].transpose(0, 1) for tensor in (query, key, value)),
            starts,
            key_starts,
            longest,
            most,
            dropout_p=rule.dropout,
            softmax_scale=rule.scale,
            causal=rule.causal,
            window_size=window,
            softcap=rule.softcap or 0.0,
        )
        return out[None]
