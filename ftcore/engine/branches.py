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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from ftcore.engine.lending import Loan, Side

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
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    sequences: Sequence[Span],
    side: Side | None = None,
) -> torch.Tensor:
    """Causal attention of each sequence over its prefix and itself.

    Args:
        query: ``[1, heads, N, size]``.
        key, value: ``[1, key heads, N, size]``.
        scale: factor on the scores; None for ``1 / sqrt(size)``.
        sequences: all of the row's.
        side: where the row is one part of a longer one, of which another thread computes the other part.

    Returns:
        ``[1, N, heads, size]``.
    """
    if torch.is_autocast_enabled("cpu") and query.dtype == torch.float32:  # as autocast does to torch's own function
        query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
    out: torch.Tensor = _Branched.apply(query, key, value, scale, tuple(sequences), side)
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
        side: Side | None,
    ) -> torch.Tensor:
        loan = None if side is None else side.begin(key, value)
        parts = []
        for number, sequence in enumerate(sequences):
            before = _before(key, value, sequence, loan, number)
            own_query, own_key, own_value = (tensor[:, :, sequence.own] for tensor in (query, key, value))
            parts.append(_attend(own_query, own_key, own_value, before, scale))
        out = torch.cat([part.transpose(1, 2) for part, _ in parts], dim=1).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, *(norms for _, norms in parts))
        ctx.scale, ctx.sequences, ctx.loan = scale, sequences, loan
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, *norms = ctx.saved_tensors
        by_query, by_key, by_value = (_buffer(tensor) for tensor in (query, key, value))
        for number, (sequence, norm) in enumerate(zip(ctx.sequences, norms, strict=True)):
            own = sequence.own
            grad_here, query_here, out_here = (tensor[:, :, own] for tensor in (grad, query, out))
            queries = _Queries(grad_here, query_here, out_here, norm, ctx.scale)
            of_own = queries.backward(key[:, :, own], value[:, :, own], causal=True)
            for tensor, part in zip((by_query, by_key, by_value), of_own, strict=True):
                tensor[:, :, own] = part
            if (before := _before(key, value, sequence, ctx.loan, number)) is None:
                continue
            of_queries, *found = queries.backward(*before, causal=False)
            by_query[:, :, own] += of_queries
            lent = () if ctx.loan is None else ctx.loan.tokens(number)
            borrowed = sum(some.stop - some.start for some in lent)
            if lent:
                ctx.loan.owe(lent, *(part[:, :, :borrowed] for part in found))
            # a prefix lies before, so its own gradient is there already
            for tensor, part in zip((by_key, by_value), found, strict=True):
                add_parts(tensor, sequence.before, part[:, :, borrowed:])
        if ctx.loan is not None:
            ctx.loan.settle(by_key, by_value)
        return by_query, by_key, by_value, None, None, None


def _before(
    key: torch.Tensor, value: torch.Tensor, sequence: Span, loan: Loan | None, number: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Keys and values that a sequence's queries see besides its own: those that are lent, then the row's."""
    lent = () if loan is None else loan.tokens(number)
    if not (lent or sequence.before):
        return None
    if not lent or loan is None or loan.lent is None:
        return _parts(key, sequence.before), _parts(value, sequence.before)
    found = [
        [other[:, :, some] for some in lent] + [own[:, :, some] for some in sequence.before]
        for other, own in zip(loan.lent, (key, value), strict=True)
    ]
    keys, values = (parts[0] if len(parts) == 1 else torch.cat(parts, 2) for parts in found)
    return keys, values


@dataclass(frozen=True, slots=True)
class _Queries:
    """A sequence's queries in the backward pass; ``out`` and ``norm`` are those over all that they see."""

    grad: torch.Tensor
    query: torch.Tensor
    out: torch.Tensor
    norm: torch.Tensor
    scale: float | None

    def backward(self, key: torch.Tensor, value: torch.Tensor, *, causal: bool) -> Sequence[torch.Tensor]:
        """Gradients of queries, keys and values, from these keys."""
        found: Sequence[torch.Tensor] = _BACKWARD(  # type: ignore[misc]
            self.grad, self.query, key, value, self.out, self.norm, 0.0, causal, scale=self.scale
        )
        return found


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output ``[1, heads, S, size]`` and logsumexp ``[1, heads, S]`` of one sequence."""
    out, norm = _FORWARD(query, key, value, 0.0, True, scale=scale)  # type: ignore[misc]
    if before is None:
        return out, norm
    early, early_norm = _FORWARD(query, *before, 0.0, False, scale=scale)  # type: ignore[misc]
    both = torch.logaddexp(norm, early_norm)
    merged = out * (norm - both).exp()[..., None] + early * (early_norm - both).exp()[..., None]
    return merged.to(query.dtype), both


def _parts(tensor: torch.Tensor, tokens: Sequence[slice]) -> torch.Tensor:
    """These tokens, as a view where they lie together."""
    found = [tensor[:, :, some] for some in tokens]
    return found[0] if len(found) == 1 else torch.cat(found, 2)


def add_parts(total: torch.Tensor, tokens: Sequence[slice], values: torch.Tensor) -> None:
    """Adds, in place, what stands for what `_parts` took."""
    for some, part in zip(tokens, values.split([some.stop - some.start for some in tokens], 2), strict=True):
        total[:, :, some] += part


def _buffer(tensor: torch.Tensor) -> torch.Tensor:
    """Room for a gradient, laid out token by token as the model's projections are."""
    return torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
