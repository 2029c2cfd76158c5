"""The runtime of the backend ``cpu``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ft_plugins.backends.cpu import attention, fused_layers, matmul, matmul_autotune
from ft_plugins.backends.cpu.attention import BlockedAttention
from ft_plugins.backends.cpu.executor import cpu_executor
from ft_plugins.backends.cpu.fused_lora import FusedAdapters
from ft_plugins.backends.cpu.linear_cross_entropy import TiledLinearCrossEntropy
from ft_plugins.backends.cpu.matmul import MatmulChoice
from ftcore.api.model_transform import ModelTransform
from ftcore.training.backend import BackendRuntime
from ftcore.training.context import TrainingContext
from ftcore.training.step.executor import MicroBatchExecutor

ATTENTION_COST = {False: 2.4, True: 3.6}
"""`BackendRuntime.attention_cost`. False: torch's kernel with MKL (Zen 3). True: oneDNN's products (Zen 5: 67 ns for 9
heads of 64 forward and backward, 4 ps per operation of a linear layer)."""


class CpuRuntime(BackendRuntime):
    """Kernels for CPUs. The choice of matrix products is one for the whole process (`ft_plugins.backends.cpu.matmul`):
    layers that were fused read it in each call."""

    name = "cpu"
    attention = (BlockedAttention(),)
    linear_cross_entropy = (TiledLinearCrossEntropy(),)

    def prepare(self, kept: Mapping[str, Any] | None, *, locking: bool) -> None:
        """Chooses the matrix products: those of the checkpoint, or else the fastest of this machine."""
        if kept is None:
            matmul_autotune.autotune(locking=locking)
        else:
            self.load_state_dict(kept)

    def state_dict(self) -> dict[str, Any]:
        """The choice of matrix products."""
        return asdict(matmul.get_choice())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the choice."""
        matmul.set_choice(MatmulChoice(**state))

    def sources(self) -> Sequence[Path]:
        """This package."""
        return (Path(__file__).parent,)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """oneDNN's messages."""
        return str(error) in matmul.NO_MEMORY

    @property
    def attention_cost(self) -> float:
        """As measured for the chosen products."""
        return ATTENTION_COST[matmul.get_choice().attention]

    @property
    def masks_prefixes(self) -> bool:
        """False where torch has the kernel of blocked attention."""
        return not attention.available()

    def executor(self, context: TrainingContext) -> MicroBatchExecutor:
        """Two micro-batches at a time, where results do not depend on the timing of threads."""
        return cpu_executor(context)

    def transforms(self) -> Sequence[ModelTransform]:
        """Layers and adapters that store fewer activations."""
        return [FusedAdapters(), fused_layers.FusedLayers()]

    def has_fused_layers(self, module: nn.Module) -> bool:
        """Whether a module contains fused layers."""
        return fused_layers.has_fused_layers(module)
