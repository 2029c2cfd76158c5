"""Attention over packed sequences, registered with transformers as ``ft_varlen``.

A batch is one row ``[1, N]``; ``cu_seq_lens_q`` (transformers' FlashAttentionKwargs) says where each sequence starts.
With a mask transformers' sdpa computes all S x S scores. One causal call per sequence was 5 to 39 times faster on a CPU
(S 1024 to 4096, 9 query and 3 key heads of 64, torch 2.13), and sequences cannot attend to each other. Without
``cu_seq_lens_q``, as in generation, it is ordinary attention with the mask of transformers. ``prefixes`` lists the
tokens of shared prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

from ftcore.training.attention.blocked import blocked_attention, serves
from ftcore.training.attention.layout import Prefixes, spans
from ftcore.training.parallel.cpu_threads.kv_exchange import KVPart

NAME = "ft_varlen"


_plain_calls: list[bool] | None = None


@contextmanager
def record_plain_calls() -> Iterator[list[bool]]:
    """Records for each call in this context whether it was plain causal attention by torch's kernel for the CPU."""
    global _plain_calls
    _plain_calls = []
    try:
        yield _plain_calls
    finally:
        _plain_calls = None


class UnsupportedAttentionError(Exception):
    """The model's attention needs a feature that this implementation does not support."""


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
    kv_part: KVPart | None = None,
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
        kv_part: where another thread computes another part of the row; see
            `ftcore.training.parallel.cpu_threads.kv_exchange`.

    Returns:
        ``[1, N, heads, value size]`` and None.

    Raises:
        UnsupportedAttentionError: for a position bias, and for prefixes without causal attention.
    """
    if kwargs.get("position_bias") is not None:
        raise UnsupportedAttentionError(f"{type(module).__name__} adds a position bias to its attention scores")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    rule = Rule(causal, dropout, scaling, sliding_window, softcap, s_aux)
    if cu_seq_lens_q is None:
        return _one_block(query, key, value, rule, attention_mask).transpose(1, 2).contiguous(), None
    if prefixes and not causal:
        raise UnsupportedAttentionError(f"{type(module).__name__} is not causal: a prompt would see the answer")
    if _flash_serves(query, rule):
        return _flash(query, key, value, rule, cu_seq_lens_q, max_length_q, prefixes), None
    lengths = cu_seq_lens_q.diff().tolist()
    before = prefixes or [()] * len(lengths)
    plain = _plain(rule, lengths, before) and serves(query, key, value)
    if _plain_calls is not None:
        _plain_calls.append(plain)
    if plain:
        # one autograd function stores its output once; with a call per sequence autograd would store each part as well
        return blocked_attention(query, key, value, rule.scale, list(spans(lengths, before)), kv_part), None
    if kv_part is not None:
        raise UnsupportedAttentionError(f"{type(module).__name__} cannot attend to keys of another part of the row")
    parts = zip(query.split(lengths, 2), _keys(key, lengths, prefixes), _keys(value, lengths, prefixes), strict=True)
    return torch.cat([_one_block(q, k, v, rule, None).transpose(1, 2) for q, k, v in parts], dim=1), None


def _plain(rule: Rule, lengths: Sequence[int], prefixes: Prefixes) -> bool:
    """Whether attention is causal without dropout, effective window, softcap or sinks."""
    longest = max(_sizes(lengths, prefixes))
    narrow = rule.window is not None and rule.window < longest
    return rule.causal and not rule.dropout and not narrow and rule.softcap is None and rule.sinks is None


def _sizes(lengths: Sequence[int], prefixes: Prefixes) -> list[int]:
    """Number of keys that each sequence's last token sees."""
    return [
        length + sum(last - first for first, last in ranges) for length, ranges in zip(lengths, prefixes, strict=True)
    ]


def _keys(tensor: torch.Tensor, lengths: Sequence[int], prefixes: Prefixes | None) -> Sequence[torch.Tensor]:
    """Each sequence's keys or values, after those of its prefix."""
    # split instead of slices: its backward is one concatenation, a slice's a zero tensor of full size per sequence
    own = tensor.split(list(lengths), 2)
    if not prefixes:
        return own
    return [
        torch.cat([*(tensor[:, :, first:last] for first, last in ranges), part], 2) if ranges else part
        for part, ranges in zip(own, prefixes, strict=True)
    ]


def _one_block(
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


def _flash_serves(query: torch.Tensor, rule: Rule) -> bool:
    """Whether flash-attention's varlen kernel computes this: half precision on CUDA, no sinks."""
    return query.is_cuda and query.dtype != torch.float32 and rule.sinks is None and bool(is_flash_attn_2_available())


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rule: Rule,
    starts: torch.Tensor,
    longest: int | None,
    prefixes: Prefixes | None,
) -> torch.Tensor:
    """flash-attention 2's varlen kernel, ``[N, heads, size]`` in and out; its last query is at its last key."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    starts = key_starts = starts.to(torch.int32)
    longest = most = int(starts.diff().max()) if longest is None else longest
    if prefixes:
        lengths = starts.diff().tolist()
        key, value = (torch.cat(list(_keys(tensor, lengths, prefixes)), 2) for tensor in (key, value))
        sizes = _sizes(lengths, prefixes)
        key_starts, most = torch.tensor([0, *sizes]).cumsum(0).to(starts), max(sizes)
    window = (-1, -1) if rule.window is None else (rule.window - 1, 0 if rule.causal else rule.window - 1)
    out = flash_attn_varlen_func(
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


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """None for packed rows, which have no padding mask; else sdpa's boolean mask."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, _mask)
