"""The vocabulary's losses by cut-cross-entropy's kernel (arXiv 2411.09009), on CUDA, where that is installed and equal.

Its kernel never writes logits to memory; ours does, a chunk at a time. It is asked for all digits: nothing filtered out
of the gradients, sums in float32. Before it is used, losses and gradients of random hidden states are held against
ours on the model's own head. Liger's fused loss is not handed over to: it makes logits a chunk at a time as ours does.

Tested on a stand-in with the interface of Apple's package; not run on a GPU.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch

from ftcore.engine.head import Head, token_logps
from ftcore.engine.scoring import TOLERANCE, Scorer

log = logging.getLogger(__name__)

_TRIED = 300
"""Positions of the trial, no multiple of a block's."""


def take_kernel(scorer: Scorer) -> None:
    """Hands a scorer's losses over to the kernel, where it gives what ours gives, to the dtype's rounding."""
    if not (scorer.fused and scorer.reads_vocabulary and _on_cuda(scorer)):
        return
    head = scorer.head()
    kernel = _kernel()
    if kernel is None or head.scale != 1.0:  # scaled hidden states would be rounded once more
        return
    try:
        equal = _equal(replace(head, kernel=kernel), head)
    except Exception as error:  # what may end a kernel's compilation has no kind in common
        log.warning("cut-cross-entropy is not used: %s: %s", type(error).__name__, error)
        return
    if equal:
        scorer.kernel = kernel
    else:
        log.warning("cut-cross-entropy is not used: it does not give this head's losses and gradients")


def _on_cuda(scorer: Scorer) -> bool:
    return bool(scorer.inner.device.type == "cuda")


def _kernel() -> Callable[..., torch.Tensor] | None:
    """``(hidden, head, labels)`` -> losses ``[T]``; None where the package is not there."""
    try:
        package: Any = importlib.import_module("cut_cross_entropy")
    except ImportError:
        return None

    def losses(hidden: torch.Tensor, head: Head, labels: torch.Tensor) -> torch.Tensor:
        exact = {"filter_eps": None, "accum_e_fp32": True, "accum_c_fp32": True}
        made = package.linear_cross_entropy(
            hidden, head.weight, labels, bias=head.bias, softcap=head.softcap, reduction="none", **exact
        )
        return cast("torch.Tensor", made)

    return losses


def _equal(one: Head, other: Head) -> bool:
    """Whether two ways through a head give the same losses and gradients."""
    found = [_tried(head) for head in (one, other)]
    close = TOLERANCE[other.weight.dtype]
    return all(
        bool((mine - theirs).abs().max() <= close * theirs.abs().max()) for mine, theirs in zip(*found, strict=True)
    )


def _tried(head: Head) -> list[torch.Tensor]:
    """Losses of random positions, and the gradients of their weighted sum."""
    vocabulary, size = head.weight.shape
    random = torch.Generator().manual_seed(0)
    made = torch.randn(_TRIED, size, generator=random), torch.rand(_TRIED, generator=random)
    labels = torch.randint(0, vocabulary, (_TRIED,), generator=random).to(head.weight.device)
    hidden, weights = made[0].to(head.weight).requires_grad_(), made[1].to(head.weight.device)
    with torch.enable_grad():
        losses = -token_logps(hidden, head, labels)
        wanted = [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None and tensor.requires_grad]
        gradients = torch.autograd.grad((losses * weights).sum(), wanted)
    return [one.detach().float() for one in (losses, *gradients)]
