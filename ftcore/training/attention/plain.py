"""Attention in plain torch, on any device: the fall-back of all kernels, and what tests compare them with."""

from __future__ import annotations

import torch
from torch.nn import functional

from ftcore.training.attention.kernel import AttentionCall, Rule
from ftcore.training.attention.layout import sequence_parts


class PlainAttention:
    """torch's own attention, one call per sequence; with full scores for softcap and sinks."""

    name = "plain"
    splits_rows = False

    def supports(self, call: AttentionCall) -> bool:
        """All but parts of a row."""
        return call.layout.kv_part is None

    def forward(self, call: AttentionCall) -> torch.Tensor:
        """See `AttentionKernel.forward`."""
        layout = call.layout
        queries, *found = (
            call.query.split(layout.lengths, 2),
            *(sequence_parts(t, layout) for t in (call.key, call.value)),
        )
        parts = zip(queries, *found, strict=True)
        return torch.cat([attend(q, k, v, call.rule, None).transpose(1, 2) for q, k, v in parts], dim=1)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule, mask: torch.Tensor | None
) -> torch.Tensor:
    """``[B, heads, S, size]``, with ``mask`` (true or 0 where attention is allowed) or else the rule's own."""
    queries, keys = query.shape[2], key.shape[2]
    narrow = rule.window is not None and rule.window < keys
    if rule.softcap is not None or rule.sinks is not None:
        return _dense(query, key, value, rule, rule.band(queries, keys, query.device) if mask is None else mask)
    if mask is None and (narrow or (rule.causal and 1 < queries < keys)):
        mask = rule.band(queries, keys, query.device)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=rule.dropout,
        is_causal=mask is None and rule.causal and queries > 1,
        scale=rule.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule, mask: torch.Tensor) -> torch.Tensor:
    """Attention with full scores, for softcap and sinks, which fused kernels do not support."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    scores = (query @ key.transpose(-1, -2)) * scale
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    if rule.sinks is not None:
        sinks = rule.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, sinks], -1)
    working = torch.float64 if scores.dtype == torch.float64 else torch.float32
    weights = scores.softmax(-1, dtype=working).to(query.dtype)[..., : key.shape[2]]
    return functional.dropout(weights, rule.dropout) @ value


PLAIN = PlainAttention()
