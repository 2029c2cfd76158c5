"""The model before training, as a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from ftcore.api.plan import Plan


def reference_of(plan: Plan, model: Any) -> Callable[[], AbstractContextManager[None]]:
    """Contexts in which the model computes as it does now, by the method's way or else a snapshot of its weights."""
    return plan.method.component.reference(plan, model) or snapshot_initial_weights(model)


def snapshot_initial_weights(model: Any) -> Callable[[], AbstractContextManager[None]]:
    """Copies the trained weights, and swaps the copies in where the model is to compute as it does now.

    The copies take as much memory as the trained weights. Data is swapped, not parameters: optimizer, gradients and
    hooks keep their tensors.

    Returns:
        Creates contexts in which the model computes as it does now, without gradients.
    """
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
    start = [tensor.detach().clone() for tensor in trained]

    def swap() -> None:
        for place, tensor in enumerate(trained):
            tensor.data, start[place] = start[place], tensor.data

    @contextmanager
    def as_it_was() -> Iterator[None]:
        swap()
        try:
            with torch.no_grad():
                yield
        finally:
            swap()

    return as_it_was
