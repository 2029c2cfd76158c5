"""Fine-tuning methods: which parameters are trained."""

from __future__ import annotations

from collections.abc import Iterable

from ft_plugins.methods.full import Full
from ft_plugins.methods.lora import Lora
from ftcore import hookimpl
from ftcore.components import Method


@hookimpl
def ft_methods() -> Iterable[Method]:
    return [
        Full(name="full", summary="every parameter is trained"),
        Lora(
            name="lora",
            summary="low-rank adapters beside frozen linear layers (https://arxiv.org/abs/2106.09685)",
            default=True,
        ),
    ]
