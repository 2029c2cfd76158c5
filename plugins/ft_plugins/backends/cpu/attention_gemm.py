"""Causal attention by explicit matrix products, for CPUs on which oneDNN is much faster than MKL.

torch's flash kernel for the CPU multiplies by MKL. Here the scores of a block of queries are one product for all heads
that share their keys, by `ft_plugins.backends.cpu.matmul`. They are recomputed in the backward pass. Milliseconds of
forward and backward on one thread of a Zen 5 (torch 2.13, 9 query and 3 key heads of 64, float32):

======  ============  ========
tokens  flash kernel  products
======  ============  ========
300     6.2           5.5
420     10.8          9.0
640     22.1          16.7
1024    54            36
2048    204           121
======  ============  ========
"""

from __future__ import annotations

from functools import cache

import torch

from ft_plugins.backends.cpu import matmul

LEAST = 12 << 20
"""Fewest floating point operations of a sequence's last block of scores: 256 tokens of the heads above, where products
take 0.95 of the kernel's time."""
MOST_THREADS = 2
"""Measured with one and two threads. The kernel divides heads among threads; here each product would be divided."""


def serves(query: torch.Tensor, keys: torch.Tensor) -> bool:
    """Whether to compute a sequence's attention by products.

    Args:
        query: ``[1, heads, N, size]``.
        keys: ``[1, key heads, S, size]``, all that the sequence's last query sees.
    """
    if not matmul.get_choice().attention or torch.get_num_threads() > MOST_THREADS:
        return False
    _, heads, seen, size = keys.shape
    work = 2 * block() * (query.shape[1] // heads) * seen * size
    return work >= max(LEAST, matmul.SMALL) and matmul.exact(query, keys)


def block() -> int:
    """Queries per block: 128 on one thread, 192 on two, which were faster with more (of 64, 128, 192)."""
    return 64 * (torch.get_num_threads() + 1)


def laid_out(keys: torch.Tensor) -> torch.Tensor:
    """Keys or values of a sequence in the layout for `forward`: contiguous per head.

    oneDNN accepts strided rows, but multiplies them a thousand times as slowly.
    """
    return keys.contiguous()


def forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Attention output of the last queries of a sequence; the last query sees all keys.

    Args:
        query: ``[1, heads, B, size]``.
        key, value: ``[1, key heads, S, size]``; S at least B.
        scale: factor on the scores; None for ``1 / sqrt(size)``.

    Returns:
        ``[1, heads, B, size]``.
    """
    grouped = _grouped(query, key, scale)
    read = [
        matmul.linear_backward_input(_weights(rows, keys, query.shape[2]), values)
        for rows, keys, values in zip(grouped, key[0], value[0], strict=True)
    ]
    return torch.stack(read).view(query.shape)


def backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, of their shapes; see `forward`."""
    grouped, gradients = _grouped(query, key, scale), _grouped(gradient, key, 1.0)
    of_queries, of_keys, of_values = [], [], []
    for rows, into, keys, values in zip(grouped, gradients, key[0], value[0], strict=True):
        weights = _weights(rows, keys, query.shape[2])
        # of keys and values transposed: oneDNN copies a transposed first matrix, which is the small one here
        of_values.append(matmul.linear_backward_weight(into, weights))
        of_scores = matmul.linear_forward(into, values)
        torch.ops.aten._softmax_backward_data.out(of_scores, weights, -1, weights.dtype, grad_input=of_scores)
        of_queries.append(matmul.linear_backward_input(of_scores, keys))
        of_keys.append(matmul.linear_backward_weight(rows, of_scores))
    factor = _scale(query, scale)
    of_query = torch.stack(of_queries).view(query.shape).mul_(factor)
    of_key, of_value = (torch.stack(parts).transpose(1, 2)[None] for parts in (of_keys, of_values))
    return of_query, of_key, of_value


def _scale(query: torch.Tensor, scale: float | None) -> float:
    return float(query.shape[-1] ** -0.5) if scale is None else scale


def _grouped(query: torch.Tensor, key: torch.Tensor, scale: float | None) -> torch.Tensor:
    """``[key heads, group * B, size]``, times the scale: queries of the heads that share a key head."""
    out = torch.empty(query.shape[1:], dtype=query.dtype)
    torch.mul(query[0], _scale(query, scale), out=out)
    return out.view(key.shape[1], -1, query.shape[-1])


def _weights(rows: torch.Tensor, keys: torch.Tensor, queries: int) -> torch.Tensor:
    """``[group * B, S]``: softmax of the scores, with later keys masked."""
    scores = matmul.linear_forward(rows, keys)
    scores.view(-1, queries, len(keys))[:, :, len(keys) - queries :] += _behind(queries, scores.dtype)
    return torch.softmax(scores, -1, out=scores)


@cache
def _behind(queries: int, dtype: torch.dtype) -> torch.Tensor:
    """``[B, B]``: minus infinity above the diagonal."""
    return torch.full((queries, queries), float("-inf"), dtype=dtype).triu(1)
