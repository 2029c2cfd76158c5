"""Whether two ways to compute the same are equivalent: one comparison, and one table of tolerances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of a whole model or a layer: largest difference of two outputs, relative to the largest number. Models' own eager
attention takes its softmax in float32 even where they are in float64."""

KERNEL_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
"""The same of one operation, such as a norm; bfloat16 has 8 bits of precision."""


def equivalent(found: Any, expected: Any, tolerance: float, *, norm: bool = False) -> bool:
    """Whether a tensor is what is expected, but for rounding.

    Args:
        found: anything; only a tensor of the same shape can be equivalent.
        expected: a tensor.
        tolerance: of the difference, relative to the expected tensor.
        norm: compares Euclidean norms, for gradients, in which much cancels out; else the largest numbers.
    """
    if not isinstance(found, torch.Tensor) or not isinstance(expected, torch.Tensor) or found.shape != expected.shape:
        return False
    if not found.numel():
        return True
    difference = (found - expected).double() if norm else (found - expected).abs()
    if norm:
        return bool(difference.norm() <= tolerance * expected.double().norm())
    return bool(difference.max() <= tolerance * expected.abs().max())


def fixed_random(*shape: int) -> torch.Tensor:
    """Normal random numbers, float32, the same at every call; the random state of the run stays as it is."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off and no gradients, and the model back in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
