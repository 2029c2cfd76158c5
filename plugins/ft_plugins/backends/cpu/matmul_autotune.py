"""Autotuning of matrix products: measured once per machine, stored in the cache folder and in checkpoints."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ft_plugins.backends.cpu import attention, matmul
from ft_plugins.backends.cpu.matmul import MatmulChoice
from ftcore.training.attention.layout import Span
from ftcore.training.numerics import TOLERANCE, equivalent
from ftcore.utils.content_store import MATMUL_CHOICE, Entry
from ftcore.utils.hashing import package_of

log = logging.getLogger(__name__)

SOURCES = (package_of(__name__),)
"""Packages with the measured code; a change makes the measurement anew."""

WORTH = 0.95
"""oneDNN is chosen if it takes less than this share of MKL's time; a smaller gain may be noise. On a Zen 3, where it
takes 1.12 of it, the best of six runs measured less than 0.97 once, beside other work, and the choice is permanent."""
TURNS = 9
"""Measurements of each choice."""
_SHAPE = (512, 576, 1024)
"""Rows, inputs and outputs of the measured products: 0.6 GFLOP, 6 ms on a fast core, 20 ms on a slow one."""
_HEADS = (9, 3, 64, 512)
"""Query heads, key heads, head size and tokens of the measured attention: 10 to 15 ms on a fast core."""


def autotune(*, locking: bool = True) -> None:
    """Sets the fastest products of this machine, from the cache or measured now.

    Args:
        locking: whether file locks work where the cache folder is.
    """
    if matmul.onednn() is None:
        matmul.set_choice(MatmulChoice())
        return
    machine = _machine()
    entry = Entry.of(MATMUL_CHOICE, machine, SOURCES, locking=None if locking else False)
    matmul.set_choice(MatmulChoice(**entry.value(_measured_alone, machine, _is_choice)))


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    capability = torch.backends.cpu.get_cpu_capability()
    return ", ".join((platform.machine(), name, capability, f"torch {torch.__version__}"))


def _measured_alone() -> dict[str, bool]:
    with _one_thread():
        return asdict(_measured())


def _is_choice(kept: Any) -> bool:
    return isinstance(kept, dict) and kept.keys() == asdict(MatmulChoice()).keys()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread: two wait for each other, longer with other work on the machine, and longer in MKL than in oneDNN."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measured() -> MatmulChoice:
    """Measures both alternately. The median of the ratios and the ratio of the best times must agree.

    oneDNN is not chosen where the results differ by more than rounding.
    """
    rows, inputs, outputs = _SHAPE
    x, weight, gradient = _random((rows, inputs), (outputs, inputs), (rows, outputs))
    try:
        with torch.no_grad():
            forward = _faster(lambda: matmul.linear_forward(x, weight), MatmulChoice(), MatmulChoice(forward=True))
            backward = _faster(
                lambda: matmul.linear_backward_input(gradient, weight), MatmulChoice(), MatmulChoice(backward=True)
            )
        by_torch, by_products = (MatmulChoice(forward, backward, one) for one in (False, True))
        possible = forward and backward and attention.available()
        taken = possible and _faster(_attended(), by_torch, by_products)
        return by_products if taken else by_torch
    except RuntimeError as error:
        log.warning("oneDNN is not used for matrix products: %s", error)
        return MatmulChoice()


def _attended() -> Callable[[], torch.Tensor]:
    """A function that computes the gradients of one sequence's attention, concatenated."""
    heads, key_heads, size, tokens = _HEADS
    query, key, value, gradient = (
        tensor.transpose(1, 2)
        for tensor in _random(*((1, tokens, count, size) for count in (heads, key_heads, key_heads, heads)))
    )
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    sequence = Span(slice(0, tokens))

    def compute() -> torch.Tensor:
        out = attention.blocked_attention(query, key, value, None, [sequence])
        return torch.cat([part.flatten() for part in torch.autograd.grad(out, leaves, gradient.transpose(1, 2))])

    return compute


def _random(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=make) for shape in shapes]


def _faster(compute: Callable[[], torch.Tensor], usual: MatmulChoice, other: MatmulChoice) -> bool:
    """Whether the other choice is faster, with equal results up to rounding."""
    spent: dict[MatmulChoice, list[float]] = {usual: [], other: []}
    results: dict[MatmulChoice, torch.Tensor] = {}
    for way in (usual, other) * TURNS:
        with matmul.choice_scope(way):
            begun = time.process_time()
            results[way] = compute()
            spent[way].append(time.process_time() - begun)
    typical = median(one / less for one, less in zip(spent[other], spent[usual], strict=True))
    same = equivalent(results[other], results[usual], TOLERANCE[torch.float32])
    return same and max(typical, min(spent[other]) / min(spent[usual])) < WORTH
