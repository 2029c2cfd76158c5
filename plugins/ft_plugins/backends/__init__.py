"""The built-in backends. Each has a package of its own, whose module ``runtime`` is imported when a run starts."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ft_plugins.backends.cpu import traits as cpu_traits
from ftcore import hookimpl
from ftcore.api.components import Backend

if TYPE_CHECKING:
    from ftcore.api.plan import Plan
    from ftcore.resources.device_traits import DeviceTraits


class BuiltIn(Backend):
    """Its runtime is made by ``runtime(plan)`` of ``ft_plugins.backends.<name>.runtime``."""

    def runtime(self, plan: Plan) -> Any:
        """What the run computes with."""
        return import_module(f"{__name__}.{self.name}.runtime").runtime(plan)


class Cpu(BuiltIn):
    """CPU kernels, and two micro-batches at a time."""

    def traits(self, plan: Plan) -> DeviceTraits:
        """Those of plain torch, and what the kernels do better."""
        return cpu_traits.traits(plan)


@hookimpl
def ft_backends() -> Iterable[Backend]:
    """The backends of this package."""
    return [
        Cpu(name="cpu", summary="kernels for CPUs, on two threads where they fit", devices=("cpu",)),
        BuiltIn(name="cuda", summary="kernels for NVIDIA GPUs", devices=("cuda",)),
        BuiltIn(name="reference", summary="plain torch on any device, against which the others are tested"),
    ]
