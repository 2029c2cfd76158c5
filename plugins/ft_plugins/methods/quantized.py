"""Linear layers of bitsandbytes on the CPU, dequantised block by block into one buffer that all layers share.

Autograd stores the quantised weight only: forward and backward both dequantise it. bitsandbytes 0.50.2 is as fast for
small layers, but allocates new memory on each call, whose pages cost more time than the work (CPU ms on one AVX2 core,
NF4 with double quantisation):

=============  ============  ==========  ===================================
layer          bitsandbytes  this table  multiplying 512 rows by it
=============  ============  ==========  ===================================
576 x 1536     0.55          0.60        10
2048 x 2048    2.4           2.7         47
2048 x 8192    50            11          205
=============  ============  ==========  ===================================

Outside training bitsandbytes computes differently: in bfloat16 where AVX-512 supports it, and in 8 bits with quantised
inputs. Training and evaluation losses would then be those of two models.
"""

from __future__ import annotations

import ctypes
import sys
from threading import get_ident
from typing import Any, cast

import bitsandbytes
import torch
from bitsandbytes import functional
from torch.autograd import Function
from torch.nn.functional import linear

from ftcore.training.model_transforms.patching import replace_class

CHUNK = 1 << 18
"""Bytes of 4-bit storage per table look-up: a megabyte of indices, two megabytes of numbers."""
INT8_STEP = 7.874015718698502e-3
"""1 / 127, as bitsandbytes' ``int8_vectorwise_dequant`` writes it."""


class Buffer:
    """Float32 memory for one weight per thread, of the size of the largest request so far."""

    def __init__(self) -> None:
        self.memory: dict[int, torch.Tensor] = {}

    def take(self, size: int) -> torch.Tensor:
        """The first ``size`` numbers; their content is overwritten."""
        thread = get_ident()  # micro-batches may run concurrently through the model
        if thread not in self.memory or self.memory[thread].numel() < size:
            self.memory[thread] = torch.empty(size)
        return self.memory[thread][:size]


class _FrozenLinear(Function):
    """``x @ W.T + bias``; forward and backward each dequantise the weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: CpuLinear4bit | CpuLinear8bit) -> torch.Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return linear(x, layer.numbers().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.layer.numbers().to(gradient.dtype), None


def _apply(layer: CpuLinear4bit | CpuLinear8bit, x: torch.Tensor) -> torch.Tensor:
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))
    return cast("torch.Tensor", _FrozenLinear.apply(x, layer))


class CpuLinear4bit:
    """NF4 or FP4, the forward of a replaced ``Linear4bit``; see `use_tables`."""

    weight: Any
    bias: Any
    buffer: Buffer
    pairs: torch.Tensor
    """For each of 256 bytes its two unscaled float32 numbers, viewed as one float64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _apply(self, x)

    def numbers(self) -> torch.Tensor:
        """The dequantised weight ``[out, in]``, bit for bit bitsandbytes'; the next call overwrites it."""
        state = self.weight.quant_state
        stored = self.weight.detach().view(torch.uint8).flatten()
        if 2 * stored.numel() % state.blocksize:
            return cast("torch.Tensor", functional.dequantize_4bit(self.weight, state))
        scales = state.absmax
        if state.nested:
            scales = functional.dequantize_blockwise(scales, state.state2) + state.offset
        numbers = self.buffer.take(2 * stored.numel())
        pairs, blocks = numbers.view(torch.float64), numbers.view(-1, state.blocksize)
        per_block = state.blocksize // 2
        for start in range(0, stored.numel(), CHUNK):
            end = min(start + CHUNK, stored.numel())
            torch.index_select(self.pairs, 0, stored[start:end].int(), out=pairs[start:end])
            rows = slice(start // per_block, end // per_block)
            blocks[rows].mul_(scales[rows, None])
        return numbers.view(state.shape).to(state.dtype)


class CpuLinear8bit:
    """Eight bits with a scale per row, the forward of a replaced ``Linear8bitLt``; see `use_tables`."""

    weight: Any
    bias: Any
    state: Any
    buffer: Buffer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _apply(self, x)

    def numbers(self) -> torch.Tensor:
        """The dequantised weight ``[out, in]``, equal to ``int8_vectorwise_dequant``; the next call overwrites it."""
        weight = self.weight.detach()
        numbers = self.buffer.take(weight.numel()).view(weight.shape)
        scales = self.weight.SCB if self.weight.SCB is not None else self.state.SCB
        return numbers.copy_(weight).mul_(scales.view(-1, 1)).mul_(INT8_STEP)


def settle(model: torch.nn.Module) -> None:
    """Frees memory that loading used besides the quantised weights, on the CPU.

    Weights that are not quantised are views of the mapped file and keep all of it in memory. Float weights that were
    read leave free blocks in the heap. A 284-million-parameter Llama in 4 bits takes 0.65 GB of resident memory after
    this call and 1.79 GB without it; the process without a model takes 0.49 GB.
    """
    for tensor in model.parameters():
        if type(tensor) is torch.nn.Parameter and tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def use_tables(model: torch.nn.Module) -> None:
    """Replaces bitsandbytes' linear layers on the CPU by these, in place; storage and names stay the same."""
    buffer, tables = Buffer(), dict[str, torch.Tensor]()
    for layer in model.modules():
        if type(layer) is bitsandbytes.nn.Linear4bit and layer.weight.device.type == "cpu":
            state = layer.weight.quant_state
            pairs = tables.setdefault(state.quant_type, _pairs(state.code))
            replace_class(layer, CpuLinear4bit, buffer=buffer, pairs=pairs)
        elif type(layer) is bitsandbytes.nn.Linear8bitLt and layer.weight.device.type == "cpu":
            replace_class(layer, CpuLinear8bit, buffer=buffer)


def _pairs(code: torch.Tensor) -> torch.Tensor:
    """The table of 16 numbers as a table of pairs for each byte, the high half first."""
    byte = torch.arange(256)
    return torch.stack([code[byte >> 4], code[byte & 15]], dim=1).contiguous().view(torch.float64).flatten()
