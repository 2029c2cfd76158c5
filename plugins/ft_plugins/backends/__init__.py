"""The built-in backends. The modules ``runtime`` of their packages are imported when a run starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ft_plugins.backends.cpu import traits as cpu_traits
from ftcore import hookimpl
from ftcore.api.components import Backend
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from ftcore.api.plan import Plan
    from ftcore.resources.device_traits import DeviceTraits


class Cpu(Backend):
    """CPU kernels, and two micro-batches at a time."""

    def traits(self, plan: Plan) -> DeviceTraits:
        """Those of plain torch, and what the kernels do better."""
        return cpu_traits.traits(plan)

    def runtime(self, plan: Plan) -> Any:
        """What the run computes with."""
        from ft_plugins.backends.cpu.runtime import CpuRuntime

        return CpuRuntime()


class Cuda(Backend):
    """CUDA kernels; all else in plain torch."""

    def runtime(self, plan: Plan) -> Any:
        """What the run computes with.

        Raises:
            UsageError: torch cannot use the GPU, for example because the driver is too old for it.
        """
        import torch

        from ft_plugins.backends.cuda.runtime import CudaRuntime

        if not torch.cuda.is_available():
            reason = f"this machine has {plan.traits.name}, and torch {torch.__version__} cannot use it"
            hint = "write use_cpu: true, or install a torch built for the GPU's driver"
            raise UsageError(Problem(reason, plan.where("backend"), hint))
        return CudaRuntime()


class Reference(Backend):
    """Plain torch: the kernels of the core."""

    def runtime(self, plan: Plan) -> Any:
        """What the run computes with."""
        from ftcore.training.backend import BackendRuntime

        return BackendRuntime()


@hookimpl
def ft_backends() -> Iterable[Backend]:
    """The backends of this package."""
    return [
        Cpu(name="cpu", summary="kernels for CPUs, on two threads where they fit", devices=("cpu",)),
        Cuda(name="cuda", summary="kernels for NVIDIA GPUs", devices=("cuda",)),
        Reference(name="reference", summary="plain torch on any device, against which the others are tested"),
    ]
