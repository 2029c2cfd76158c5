"""Blocked causal attention over packed sequences with shared prefixes, on the CPU.

torch's flash kernel for the CPU processes 512 keys at a time and, with ``is_causal``, computes all their scores: twice
the needed work for sequences of up to 512 tokens. Here the queries of a sequence are processed in blocks, each with the
keys that its last query sees and a mask of the triangle at the end. Keys of a shared prefix come before the sequence's
own. CPU ms of forward and backward on one thread of a Zen 3 (torch 2.13, 9 query and 3 key heads of 64, float32):

======  ===============  ======
tokens  one causal call  blocks
======  ===============  ======
128     2.10             1.93
200     4.84             4.00
300     10.8             7.8
420     20.5             13.9
640     41.8             30.4
1024    91               73
======  ===============  ======

Blocks of 32 and of 128 queries were slower. Computing triangle and rectangle apart, merged by their logsumexps, was
slower too. Where oneDNN's products are much faster than MKL's, `ft_plugins.backends.cpu.attention_gemm` replaces
torch's kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ft_plugins.backends.cpu import attention_gemm as gemm
from ftcore.training.attention.kernel import AttentionCall
from ftcore.training.attention.layout import RowPart, RowPartCall, Span, add_parts

BLOCK = 64
"""Queries per block for torch's kernel; a multiple of it where there are more threads than heads."""
_FORWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def available() -> bool:
    """Whether this torch has the kernel."""
    return _FORWARD is not None and _BACKWARD is not None


class BlockedAttention:
    """Plain causal attention in blocks of queries, also over shared prefixes and over a part of a row."""

    name = "blocked"
    splits_rows = True

    def supports(self, call: AttentionCall) -> bool:
        """Plain causal attention on the CPU; query, key and value of one size and dtype."""
        query, key, value = call.query, call.key, call.value
        same = query.shape[-1] == key.shape[-1] == value.shape[-1] and query.dtype == key.dtype == value.dtype
        contiguous = {query.stride(-1), key.stride(-1), value.stride(-1)} == {1}
        return query.device.type == "cpu" and available() and same and contiguous and call.is_plain_causal

    def forward(self, call: AttentionCall) -> torch.Tensor:
        """See `ftcore.training.attention.kernel.AttentionKernel.forward`."""
        # one autograd function stores its output once; with a call per sequence autograd would store each part as well
        layout = call.layout
        return blocked_attention(call.query, call.key, call.value, call.rule.scale, layout.spans(), layout.kv_part)


def blocked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    sequences: Sequence[Span],
    kv_part: RowPart | None = None,
) -> torch.Tensor:
    """Causal attention of each sequence over its prefix and itself.

    Args:
        query: ``[1, heads, N, size]``.
        key, value: ``[1, key heads, N, size]``.
        scale: factor on the scores; None for ``1 / sqrt(size)``.
        sequences: all sequences of the row.
        kv_part: for a row that is one part of a longer one, whose other part another thread computes.

    Returns:
        ``[1, N, heads, size]``.
    """
    if torch.is_autocast_enabled("cpu") and query.dtype == torch.float32:  # as autocast does for torch's attention
        query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        out: torch.Tensor = _BlockedAttention.apply(query, key, value, scale, tuple(sequences), kv_part)
    return out.transpose(1, 2)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        sequences: tuple[Span, ...],
        kv_part: RowPart | None,
    ) -> torch.Tensor:
        own, out = (query, key, value), _buffer(query)
        query, key, value = (tensor.to(_computing(tensor.dtype)) for tensor in own)
        kv_slice = None if kv_part is None else kv_part.begin(key, value)
        norm = query.new_empty(query.shape[:3], dtype=_working(query.dtype))
        ways = []
        for number, sequence in enumerate(sequences):
            keys, values = _seen(key, value, sequence, kv_slice, number)
            by_gemm, size = _way(query, keys)
            ways.append((by_gemm, size))
            if by_gemm:
                keys, values = gemm.laid_out(keys), gemm.laid_out(values)
            for block, seen in _blocks(sequence.own, keys.shape[2], size):
                some = query[:, :, block], keys[:, :, :seen], values[:, :, :seen]
                if by_gemm:
                    out[:, :, block] = gemm.forward(*some, scale)
                else:
                    how = _how(*some[:2], size)
                    out[:, :, block], norm[:, :, block] = _FORWARD(*some, scale=scale, **how)  # type: ignore[misc]
        ctx.save_for_backward(*own, out, norm)
        ctx.scale, ctx.sequences, ctx.ways, ctx.kv_slice = scale, sequences, ways, kv_slice
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *own, norm = ctx.saved_tensors
        dtype = own[0].dtype
        query, key, value, out, grad = (tensor.to(_computing(dtype)) for tensor in (*own, grad))
        by_query, by_key, by_value = (_buffer(tensor) for tensor in (query, key, value))
        for number, (sequence, (by_gemm, size)) in enumerate(zip(ctx.sequences, ctx.ways, strict=True)):
            keys, values = _seen(key, value, sequence, ctx.kv_slice, number)
            found: list[torch.Tensor] = []
            if by_gemm:
                keys, values = gemm.laid_out(keys), gemm.laid_out(values)
            for block, seen in reversed(list(_blocks(sequence.own, keys.shape[2], size))):
                some = query[:, :, block], keys[:, :, :seen], values[:, :, :seen]
                gradient = grad[:, :, block]
                if by_gemm:
                    by_query[:, :, block], *parts = gemm.backward(gradient, *some, ctx.scale)
                else:
                    ended, how = (tensor[:, :, block] for tensor in (out, norm)), _how(*some[:2], size)
                    by_query[:, :, block], *parts = _BACKWARD(  # type: ignore[misc]
                        gradient, *some, *ended, scale=ctx.scale, **how
                    )
                if not found:  # the last block comes first: its queries see all keys
                    found = [part.to(norm.dtype) for part in parts]
                    continue
                for total, part in zip(found, parts, strict=True):
                    total[:, :, :seen] += part
            _add_grads(ctx.kv_slice, number, sequence, found, (by_key, by_value))
        if ctx.kv_slice is not None:
            ctx.kv_slice.send_grads(by_key, by_value)
        return by_query.to(dtype), by_key.to(dtype), by_value.to(dtype), None, None, None


def _seen(
    key: torch.Tensor, value: torch.Tensor, sequence: Span, kv_slice: RowPartCall | None, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that a sequence sees: remote ones, then those of its prefix in this row, then its own."""
    remote = () if kv_slice is None else kv_slice.tokens(number)
    own = [*sequence.before, sequence.own]
    if not remote or kv_slice is None or kv_slice.remote is None:
        return _parts([(key, own)]), _parts([(value, own)])
    keys, values = kv_slice.remote
    return _parts([(keys, remote), (key, own)]), _parts([(values, remote), (value, own)])


def _add_grads(
    kv_slice: RowPartCall | None,
    number: int,
    sequence: Span,
    found: Sequence[torch.Tensor],
    totals: Sequence[torch.Tensor],
) -> None:
    """Adds the gradients of the keys and values that `_seen` collected."""
    remote = () if kv_slice is None else kv_slice.tokens(number)
    remote_count = sum(some.stop - some.start for some in remote)
    if remote and kv_slice is not None:
        kv_slice.add_grad(remote, *(part[:, :, :remote_count] for part in found))
    own = sequence.own.stop - sequence.own.start
    for total, part in zip(totals, found, strict=True):
        before = part.shape[2] - own
        total[:, :, sequence.own] = part[:, :, before:]
        # prefixes belong to earlier sequences, whose own gradients were assigned before: this adds to them
        add_parts(total, sequence.before, part[:, :, remote_count:before])


def _way(query: torch.Tensor, keys: torch.Tensor) -> tuple[bool, int]:
    """Whether a sequence is computed by `ft_plugins.backends.cpu.attention_gemm`, and the size of its blocks."""
    if gemm.serves(query, keys):
        return True, gemm.block()
    return False, BLOCK * -(-torch.get_num_threads() // query.shape[1])


def _blocks(own: slice, keys: int, size: int) -> Iterator[tuple[slice, int]]:
    """Blocks of a sequence's queries: where they are in the row, and how many of the keys they see."""
    length = own.stop - own.start
    more = max(0, (length + size // 4) // size - 1)
    ends = [length - size * later for later in range(more, -1, -1)]
    for start, end in pairwise([0, *ends]):
        yield slice(own.start + start, own.start + end), keys - length + end


def _how(query: torch.Tensor, keys: torch.Tensor, size: int) -> dict[str, Any]:
    """The kernel's arguments for a block's mask."""
    queries, seen = query.shape[2], keys.shape[2]
    triangle = queries == seen
    mask = None if triangle else _mask(queries, seen, size, keys.dtype)
    return {"dropout_p": 0.0, "is_causal": triangle, "attn_mask": mask}


_masks: dict[tuple[int, torch.dtype], torch.Tensor] = {}


def _mask(queries: int, keys: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """``[1, 1, queries, keys]``, added to scores; the last query sees all keys."""
    kept = _masks.get((size, dtype))
    rows = 2 * size
    if kept is None or kept.shape[-1] < rows + keys:
        width = 1 << (rows + keys - 1).bit_length()
        kept = torch.full((1, 1, rows, width), float("-inf"), dtype=dtype).triu(width - rows + 1)
        _masks[size, dtype] = kept
    return kept[:, :, rows - queries :, kept.shape[-1] - keys :]


def _parts(found: Sequence[tuple[torch.Tensor, Sequence[slice]]]) -> torch.Tensor:
    """The given tokens of each tensor, concatenated; a single range is a view."""
    parts = [tensor[:, :, some] for tensor, tokens in found for some in tokens]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _computing(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the computation: torch's kernel is slower in bfloat16 on processors without AMX.

    One thread of a Zen 5, forward and backward of 30 layers, 8 rows with 1,496 tokens in total, 9 query and 3 key heads
    of 64: 1.45 s in bfloat16, 0.93 s in float32.
    """
    return torch.float32 if dtype == torch.bfloat16 and not _amx() else dtype


@cache
def _amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def _working(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the kernel's logsumexps."""
    return torch.promote_types(dtype, torch.float32)


def _buffer(tensor: torch.Tensor) -> torch.Tensor:
    """An empty tensor of the same shape, in the memory layout of the model's projections: token by token."""
    return torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
