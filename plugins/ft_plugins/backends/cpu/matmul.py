"""Matrix products of activations and weights on a CPU, by MKL or oneDNN, whichever is faster on this machine.

torch uses MKL for float32 products, which is slow on AMD. GFLOP/s of one core, MKL and oneDNN:

==========================================  ============  ============
processor and shape                         forward       backward
==========================================  ============  ============
Zen 2                                       36, 45        33, 42
Zen 4, 1600 rows, 576 to 1536               97, 109       102, 109
Zen 4, a vocabulary of 49,152 tokens        76, 88        99, 104
==========================================  ============  ============

MKL is faster for small products (64 rows, 32 to 48: 38, 12). A measurement of under a second chooses once per machine;
the cache folder stores the choice. Results differ in the last bits, so checkpoints store the choice too, and a resumed
run uses the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import functional

SMALL = 4 << 20
"""Fewest floating point operations for oneDNN. On a Zen 4 both were equally fast at 15 million (64 rows, 576 to 192).
On a Zen 5 oneDNN is twice as fast as MKL from 5 million on, and equally fast at 2 million."""
NO_MEMORY = {f"could not {what}" for what in ("create a primitive", "create a memory object", "execute a primitive")}
"""Error messages of oneDNN when memory runs out. For unsupported operations it names a primitive's descriptor."""


@dataclass(frozen=True, slots=True)
class MatmulChoice:
    """Which products oneDNN computes.

    Args:
        forward: ``x @ weight.T``.
        backward: ``gradient @ weight``.
        attention: whether these products compute attention instead of torch's kernel.
    """

    forward: bool = False
    backward: bool = False
    attention: bool = False


_used = MatmulChoice()


def get_choice() -> MatmulChoice:
    """The choice of this process; torch's products until `set_choice` is called."""
    return _used


def set_choice(products: MatmulChoice) -> None:
    """Sets the choice of this process; ignored where oneDNN's operator does not exist."""
    global _used
    _used = products if onednn() is not None else MatmulChoice()


@contextmanager
def choice_scope(products: MatmulChoice) -> Iterator[None]:
    """Sets the choice within a context."""
    before = get_choice()
    set_choice(products)
    try:
        yield
    finally:
        set_choice(before)


def linear_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, room: torch.Tensor | None = None
) -> torch.Tensor:
    """``x @ weight.T + bias``; differentiable as torch's own.

    Args:
        x: ``[..., in]``.
        weight: ``[out, in]``.
        bias: ``[out]``.
        room: output buffer ``[N, out]`` for a two-dimensional ``x`` without gradients; oneDNN does not use it.
    """
    if _used.forward and _served(x, weight):
        return _by_onednn(x, weight, bias)
    if room is not None:
        turned = weight.t()
        return torch.mm(x, turned, out=room) if bias is None else torch.addmm(bias, x, turned, out=room)
    return functional.linear(x, weight, bias)


def linear_backward_input(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``gradient @ weight``: ``[..., out]`` -> ``[..., in]``."""
    if _used.backward and _served(gradient, weight):
        # a transposed copy of the weight would not be faster: oneDNN packs its inputs
        return _by_onednn(gradient, weight.t())
    return gradient @ weight


def linear_backward_weight(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """``first.T @ second``, the form of weight gradients: ``[N, a]``, ``[N, b]`` -> ``[a, b]``."""
    turned = first.t()
    if _used.backward and _served(turned, second):
        return _by_onednn(turned, second.t())
    return turned @ second


def add_linear_forward(total: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, factor: float) -> torch.Tensor:
    """``total += factor * x @ weight.T``, in place; all of two dimensions."""
    if _used.forward and _served(x, weight):
        return total.add_(linear_forward(x, weight), alpha=factor)
    return add(total, x, weight.t(), factor)


def add_linear_backward_input(total: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``total += gradient @ weight``, in place; all of two dimensions."""
    if _used.backward and _served(gradient, weight):
        return total.add_(linear_backward_input(gradient, weight))
    return add(total, gradient, weight)


def add(total: torch.Tensor, first: torch.Tensor, second: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """``total += factor * first @ second``, in place. Not ``addmm_``, which torch's FLOP counter does not count."""
    return torch.addmm(total, first, second, alpha=factor, out=total)


def plain(*tensors: torch.Tensor) -> bool:
    """Whether tensors are on the CPU and of one supported dtype that autocast does not change.

    Always false while torch compiles, so that compiled code contains torch's own operations only.
    """
    if torch.compiler.is_compiling() or any(tensor.device.type != "cpu" for tensor in tensors):
        return False
    dtypes = {tensor.dtype for tensor in tensors}
    if torch.is_autocast_enabled("cpu"):
        return dtypes == {torch.bfloat16} and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64, torch.bfloat16}


def exact(*tensors: torch.Tensor) -> bool:
    """The same, without half precision."""
    return plain(*tensors) and tensors[0].dtype != torch.bfloat16


def _served(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether to use oneDNN: without gradients, large, float32. In half precision torch uses oneDNN itself."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    large = 2 * x.numel() // max(1, x.shape[-1]) * weight.numel() >= SMALL
    return large and x.dtype == torch.float32 and plain(x, weight)


def onednn() -> Callable[..., Any] | None:
    """torch's private oneDNN operator; None where this build or processor does not support it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    return cast("Callable[..., Any]", torch.ops.mkldnn._linear_pointwise)


def _by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``; torch's product where oneDNN runs out of memory.

    oneDNN generates code for each new shape in pages of its own. Under a limit of address space these cannot be
    allocated even if enough memory is free for the product, and micro-batches of half the rows failed as well.
    """
    try:
        return cast("torch.Tensor", onednn()(x, weight, bias, "none", [], ""))  # type: ignore[misc]
    except RuntimeError as error:
        if str(error) not in NO_MEMORY:
            raise
        return functional.linear(x, weight, bias)
