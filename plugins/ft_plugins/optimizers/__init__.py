"""Optimizers."""

from __future__ import annotations

from collections.abc import Iterable

from ft_plugins.optimizers.adamw import AdamW
from ftcore import hookimpl
from ftcore.components import Optimizer


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    return [
        AdamW(
            name="adamw",
            summary="Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101)",
            aliases=("adamw_torch", "adamw_torch_fused"),
            default=True,
        ),
    ]
