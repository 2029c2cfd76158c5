"""Causal attention over sequences end to end of which some go on from the beginning of another one, on the CPU.

torch's flash kernel for the CPU knows "all keys" and "the causal triangle", and a query that goes on from a prefix
needs the first over the prefix and the second over its own sequence. Both are computed, and merged by their logsumexps;
in the backward pass the kernel takes each part with the merged output and logsumexp, which gives its exact gradients
(the algebra of ring attention, arXiv 2310.01889, section 3). Measured against one call under a boolean mask (forward
and backward, 9 query and 3 key heads of 64, torch 2.13, one thread of an AMD EPYC, CPU-ms): 48 keys before 700 queries
47 instead of 58, 396 before 240 15.7 instead of 17.0, 60 before 47 0.86 instead of 0.81; a causal call over prefix and
queries takes 46, 37 and 1.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

Prefixes = Sequence[Sequence[tuple[int, int]]]
"""For each sequence the tokens of the row, ``start`` to ``end``, that it sees besides its own, in their order."""

_FORWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence: its tokens in the row, and those that come before them for its queries.

    Args:
        own: its tokens.
        before: the prefix's, of sequences that lie before it; empty for none.
    """

    own: slice
    before: tuple[slice, ...] = ()


def spans(lengths: Sequence[int], prefixes: Prefixes) -> Iterator[Span]:
    """The sequences of a row."""
    start = 0
    for length, ranges in zip(lengths, prefixes, strict=True):
        yield Span(slice(start, start + length), tuple(slice(first, last) for first, last in ranges))
        start += length


def available(device: torch.device) -> bool:
    """Whether the kernel is there."""
    return device.type == "cpu" and _FORWARD is not None and _BACKWARD is not None


def serves(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernel is there and takes these."""
    same = query.shape[-1] == key.shape[-1] == value.shape[-1] and query.dtype == key.dtype == value.dtype
    return available(query.device) and same and {query.stride(-1), key.stride(-1), value.stride(-1)} == {1}


def branched_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, sequences: Sequence[Span]
) -> torch.Tensor:
    """Causal attention of each sequence over its prefix and itself.

    Args:
        query: ``[1, heads, N, size]``.
        key, value: ``[1, key heads, N, size]``.
        scale: factor on the scores; None for ``1 / sqrt(size)``.
        sequences: all of the row's.

    Returns:
        ``[1, N, heads, size]``.
    """
    if torch.is_autocast_enabled("cpu") and query.dtype == torch.float32:  # as autocast does to torch's own function
        query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
    out: torch.Tensor = _Branched.apply(query, key, value, scale, tuple(sequences))
    return out.transpose(1, 2)


class _Branched(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        sequences: tuple[Span, ...],
    ) -> torch.Tensor:
        parts = [_attend(query, key, value, scale, sequence) for sequence in sequences]
        out = torch.cat([part.transpose(1, 2) for part, _ in parts], dim=1).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, *(norms for _, norms in parts))
        ctx.scale, ctx.sequences = scale, sequences
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, *norms = ctx.saved_tensors
        by_query, by_key, by_value = (_buffer(tensor) for tensor in (query, key, value))
        for sequence, norm in zip(ctx.sequences, norms, strict=True):
            own = (sequence.own,)
            for keys in (own, sequence.before):
                if not keys:
                    continue
                found = _BACKWARD(  # type: ignore[misc]
                    *(_parts(tensor, own) for tensor in (grad, query)),
                    *(_parts(tensor, keys) for tensor in (key, value)),
                    _parts(out, own),
                    norm,
                    0.0,
                    keys is own,
                    scale=ctx.scale,
                )
                # a prefix lies before, so its own gradient is there already
                put = torch.Tensor.copy_ if keys is own else torch.Tensor.add_
                for tensor, tokens, part in zip((by_query, by_key, by_value), (own, keys, keys), found, strict=True):
                    _put(put, tensor, tokens, part)
        return by_query, by_key, by_value, None, None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, sequence: Span
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output ``[1, heads, S, size]`` and logsumexp ``[1, heads, S]`` of one sequence."""
    own, before = (sequence.own,), sequence.before
    queries = _parts(query, own)
    out, norm = _FORWARD(queries, _parts(key, own), _parts(value, own), 0.0, True, scale=scale)  # type: ignore[misc]
    if not before:
        return out, norm
    early, early_norm = _FORWARD(  # type: ignore[misc]
        queries, _parts(key, before), _parts(value, before), 0.0, False, scale=scale
    )
    both = torch.logaddexp(norm, early_norm)
    merged = out * (norm - both).exp()[..., None] + early * (early_norm - both).exp()[..., None]
    return merged.to(query.dtype), both


def _parts(tensor: torch.Tensor, tokens: Sequence[slice]) -> torch.Tensor:
    """These tokens, as a view where they lie together."""
    found = [tensor[:, :, some] for some in tokens]
    return found[0] if len(found) == 1 else torch.cat(found, 2)


def _put(how: Callable[..., Any], tensor: torch.Tensor, tokens: Sequence[slice], values: torch.Tensor) -> None:
    """``copy_`` or ``add_`` of what `_parts` took."""
    for some, part in zip(tokens, values.split([some.stop - some.start for some in tokens], 2), strict=True):
        how(tensor[:, :, some], part)


def _buffer(tensor: torch.Tensor) -> torch.Tensor:
    """Room for a gradient, laid out token by token as the model's projections are."""
    return torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
