"""Products of activations and weights on a CPU, by MKL or by oneDNN: whichever is the faster one on this machine.

torch gives float32 products to MKL, which is weak on AMD. Measured, GF/s of one core (MKL, oneDNN): Zen 2 forward
36, 45 and backward 33, 42; Zen 4 (1600 rows, 576 to 1536) forward 97, 109 and backward 102, 109, through a vocabulary
of 49,152 tokens 76, 88 and 99, 104. Small ones are faster by MKL (64 rows, 32 to 48: 38, 12). The choice is made once
per machine by a measurement of under a second and kept in the cache folder. Both differ in the last bits, so that
checkpoints keep the choice and a resumed run takes it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import functional

SMALL = 4 << 20
"""Floating point operations from which oneDNN is taken. On a Zen 4 both were as fast at 15 million (64 rows, 576 to
192); on a Zen 5 oneDNN makes twice MKL's operations a second from 5 million on, at 2 million as many."""
NO_MEMORY = {f"could not {what}" for what in ("create a primitive", "create a memory object", "execute a primitive")}
"""What oneDNN says where memory runs out. What it does not know it calls a primitive's descriptor."""


@dataclass(frozen=True, slots=True)
class MatmulChoice:
    """Which products oneDNN computes.

    Args:
        forward: ``x @ weight.T``.
        backward: ``gradient @ weight``.
        attention: whether attention's scores are made by these, instead of torch's own kernel.
    """

    forward: bool = False
    backward: bool = False
    attention: bool = False


_used = MatmulChoice()


def get_choice() -> MatmulChoice:
    """What is in use in this process; torch's own until `set_choice` is called."""
    return _used


def set_choice(products: MatmulChoice) -> None:
    """Takes these from now on."""
    global _used
    _used = products if onednn() is not None else MatmulChoice()


@contextmanager
def choice_scope(products: MatmulChoice) -> Iterator[None]:
    """Takes these for a while."""
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
        room: ``[N, out]``, where the result of an ``x`` of two dimensions is put if nothing needs gradients and it can
            be (oneDNN makes a tensor of its own).
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
        # a transposed copy of the weight is no faster here: oneDNN packs what it is given
        return _by_onednn(gradient, weight.t())
    return gradient @ weight


def linear_backward_weight(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """``first.T @ second``, as gradients of weights are: ``[N, a]``, ``[N, b]`` -> ``[a, b]``."""
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
    """``total += factor * first @ second``, in place; as ``addmm_``, which torch's FLOP counter does not know."""
    return torch.addmm(total, first, second, alpha=factor, out=total)


def plain(*tensors: torch.Tensor) -> bool:
    """Whether these are computed with on a CPU as they are: all in one dtype, which autocast, if any, leaves.

    Never where they are compiled: torch's compiler is given torch's own operations.
    """
    if torch.compiler.is_compiling() or any(tensor.device.type != "cpu" for tensor in tensors):
        return False
    dtypes = {tensor.dtype for tensor in tensors}
    if torch.is_autocast_enabled("cpu"):
        return dtypes == {torch.bfloat16} and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64, torch.bfloat16}


def exact(*tensors: torch.Tensor) -> bool:
    """The same, and in no half precision."""
    return plain(*tensors) and tensors[0].dtype != torch.bfloat16


def _served(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN's product is there for it: it knows no gradients, and in half precision torch takes it anyway."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    large = 2 * x.numel() // max(1, x.shape[-1]) * weight.numel() >= SMALL
    return large and x.dtype == torch.float32 and plain(x, weight)


def onednn() -> Callable[..., Any] | None:
    """torch's private operator, where this build has it and the processor is one that it is made for."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    return cast("Callable[..., Any]", torch.ops.mkldnn._linear_pointwise)


def _by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``; torch's own where memory does not suffice.

    oneDNN makes code for each new shape, in pages of its own: under a limit of addresses there are none, although what
    was freed is enough for the product, and passes of half the rows failed likewise.
    """
    try:
        return cast("torch.Tensor", onednn()(x, weight, bias, "none", [], ""))  # type: ignore[misc]
    except RuntimeError as error:
        if str(error) not in NO_MEMORY:
            raise
        return functional.linear(x, weight, bias)
