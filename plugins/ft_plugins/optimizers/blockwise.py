"""bitsandbytes' 8-bit AdamW on the CPU: its storage and its formula, in one pass over each block of 256 values.

A state is 8-bit codes with one float32 ``absmax`` per block. A code stands for one of 256 numbers in [-1, 1] (dynamic
map, https://arxiv.org/abs/2110.02861). Time per parameter on one thread of an EPYC: bitsandbytes' CPU kernels 61 ns,
most of it a search of the map for each value; torch operations with a look-up table 10 ns; this compiled pass 2.7 ns
(numba 0.68); torch's fused AdamW in float32 0.7 ns.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import bitsandbytes
import numba
import numpy as np
import torch

BLOCK = 256
APART = 256
"""Fewest blocks per thread for which splitting a parameter among threads is faster."""
_FAST = {"nnan", "nsz"}
"""Fast-math flags that let the maximum of a block be vectorised; no sum is reordered."""
_SHIFT = 14
"""Low bits of a float32 that do not choose its bucket: sign, exponent and 9 bits of the fraction do. A value gets the
code nearest to the middle of its bucket. The code differs from bitsandbytes' only within 1/14 of a step of the midpoint
between two codes. An exact choice there would cost 0.9 ns per parameter."""


class BlockwiseAdamW(bitsandbytes.optim.AdamW):
    """bitsandbytes' AdamW in 8 bits; its states, their layout and ``state_dict`` are bitsandbytes' own.

    bitsandbytes itself updates parameters on other devices and those of fewer than 4096 values, whose states are
    float32.
    """

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update_step(self, group: dict[str, Any], p: torch.Tensor, gindex: int, pindex: int) -> None:
        state = self.state[p]
        if p.device.type != "cpu" or state["state1"].dtype != torch.uint8:
            super().update_step(group, p, gindex, pindex)
            return
        state["step"] += 1
        weights = p.detach().float().contiguous()
        tensors = [weights, p.grad.float().contiguous(), state["state1"], state["state2"]]
        arrays = [tensor.view(-1).numpy() for tensor in (*tensors, state["absmax1"], state["absmax2"])]
        step_adamw(arrays, step_numbers(group, state["step"]))
        if weights.data_ptr() != p.data_ptr():
            p.copy_(weights)


def step_numbers(group: dict[str, Any], step: int) -> tuple[np.float32, ...]:
    """The scalars of one step of a group, in the order that `_step_blocks` unpacks."""
    beta1, beta2 = group["betas"]
    rate = group["lr"]
    correction = math.sqrt(1.0 - beta2**step)
    decay, size = 1.0 - rate * group["weight_decay"], rate * correction / (1.0 - beta1**step)
    numbers = (beta1, 1.0 - beta1, beta2, 1.0 - beta2, decay, group["eps"] * correction, size)
    return tuple(np.float32(number) for number in numbers)


def step_adamw(arrays: list[np.ndarray], numbers: tuple[np.float32, ...]) -> None:
    """One AdamW step of one parameter of n values, in place, on as many threads as torch uses.

    Args:
        arrays: float32 weights and gradient, uint8 codes of mean and square, ``[n]``; float32 absmax of mean and of
            square, ``[ceil(n / 256)]``.
        numbers: of `step_numbers`.
    """
    blocks = len(arrays[0]) // BLOCK
    threads = min(torch.get_num_threads(), max(1, blocks // APART))
    edges = [blocks * number // threads for number in range(threads + 1)]
    shares = [(*arrays, *_tables(), numbers, start, stop) for start, stop in pairwise(edges)]
    waiting = [_pool().submit(_step_blocks, *share) for share in shares[1:]]
    _step_blocks(*shares[0])
    for share in waiting:
        share.result()
    if len(arrays[0]) % BLOCK:
        _step_rest(arrays, numbers)


def _step_rest(arrays: list[np.ndarray], numbers: tuple[np.float32, ...]) -> None:
    """Steps the last, partial block on padded copies. The padding changes neither absmax nor codes."""
    start = len(arrays[0]) // BLOCK * BLOCK
    rests = [*(array[start:] for array in arrays[:4]), *(array[-1:] for array in arrays[4:])]
    zero = int(np.flatnonzero(_tables()[0] == 0)[0])
    fills = (0, 0, zero, 0)
    wide = [np.full(BLOCK, fill, rest.dtype) for fill, rest in zip(fills, rests, strict=False)]
    for full, rest in zip(wide, rests, strict=False):
        full[: len(rest)] = rest
    _step_blocks(*wide, *rests[4:], *_tables(), numbers, 0, 1)
    for full, rest in zip(wide, rests, strict=False):
        rest[:] = full[: len(rest)]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="adamw-8bit")


@cache
def _tables() -> tuple[np.ndarray, ...]:
    """Of mean and of square: the map ``[256]``, and the code of each bucket ``[2 ** 18]``."""
    bits = (np.arange(1 << (32 - _SHIFT), dtype=np.uint32) << _SHIFT) + (1 << (_SHIFT - 1))
    middles = np.nan_to_num(bits.view(np.float32), nan=0.0)
    maps = [bitsandbytes.functional.create_dynamic_map(signed=signed).numpy() for signed in (True, False)]
    codes = [np.searchsorted((values[1:] + values[:-1]) / 2, middles).astype(np.uint8) for values in maps]
    return maps[0], codes[0], maps[1], codes[1]


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST)  # type: ignore[untyped-decorator]
def _step_blocks(
    weights: Any, gradient: Any, means: Any, squares: Any, mean_absmax: Any, square_absmax: Any,
    mean_map: Any, mean_codes: Any, square_map: Any, square_codes: Any, numbers: Any, first: int, last: int,
) -> None:  # fmt: skip
    beta1, rest1, beta2, rest2, decay, epsilon, size = numbers
    mean, square = np.empty(256, np.float32), np.empty(256, np.float32)
    mean_bits, square_bits = mean.view(np.uint32), square.view(np.uint32)
    tiny = np.float32(1.1754944e-38)
    for block in range(first, last):
        start = np.uint64(block * 256)  # unsigned: numba checks signed indices for negative values
        scale1, scale2 = mean_absmax[block], square_absmax[block]
        for i in range(256):
            mean[i] = mean_map[means[start + np.uint64(i)]] * scale1
            square[i] = square_map[squares[start + np.uint64(i)]] * scale2
        largest1, largest2 = np.float32(0), np.float32(0)
        for i in range(256):
            slope = gradient[start + np.uint64(i)]
            mean[i] = mean[i] * beta1 + slope * rest1
            square[i] = square[i] * beta2 + slope * slope * rest2
            largest1 = max(largest1, abs(mean[i]))
            largest2 = max(largest2, square[i])
        for i in range(256):
            at = start + np.uint64(i)
            weights[at] = weights[at] * decay - size * mean[i] / (np.sqrt(square[i]) + epsilon)
        mean_absmax[block], square_absmax[block] = largest1, largest2
        over1, over2 = np.float32(1) / max(largest1, tiny), np.float32(1) / max(largest2, tiny)
        for i in range(256):
            mean[i] *= over1
            square[i] *= over2
        for i in range(256):
            means[start + np.uint64(i)] = mean_codes[mean_bits[i] >> 14]
        for i in range(256):
            squares[start + np.uint64(i)] = square_codes[square_bits[i] >> 14]
