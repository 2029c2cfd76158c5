"""How a run is divided among processes: what the trainer and its parts ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from ftcore.training.batching.collators import Batch

T = TypeVar("T")


class ParallelStrategy(Protocol):
    """One way to divide a run among processes.

    The forward pass goes through `forward` and whole weights through `full_tensor`, so that a strategy may wrap the
    model, shard its weights or divide a sequence.

    Attributes:
        name: ``single`` or ``ddp``; as the manifest and logs name it.
        world_size: number of processes.
        rank: number of this process.
        is_main: whether this process writes the run's files.
        device: of this process.
        splits_batches: whether a process may divide its batches as it likes. Processes that average gradients in each
            backward pass need equally many of them.
    """

    name: str
    world_size: int
    rank: int
    is_main: bool
    device: torch.device
    splits_batches: bool

    @property
    def scaler(self) -> Any:
        """The gradient scaler of float16; None without."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Wraps the model for `forward`; returns the optimizer to step, which unscales gradients."""

    def forward(self, loss_of: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
        """``loss_of(batch)``, a scalar, inside the wrapped model's forward where there is one."""

    def full_tensor(self, weight: torch.Tensor) -> torch.Tensor:
        """The whole weight, differentiable, where a process holds a part of it."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of forward passes: autocast where compute and trained dtypes differ."""

    def share_autocast_cache(self, shared: bool) -> None:
        """Whether autocast may keep cast weights; threads that compute at a time must not share them."""

    def backward(self, loss: torch.Tensor, learning_rate: float | None = None) -> None:
        """The backward pass; ``learning_rate`` for optimizers that step in it."""

    def no_sync(self, last: bool) -> AbstractContextManager[Any]:
        """The context of one micro-batch; only the ``last`` one of a step exchanges gradients."""

    def clip_gradients(self, parameters: Iterable[torch.Tensor], limit: float) -> torch.Tensor:
        """Scales gradients to a norm of at most ``limit`` and returns their norm before."""

    def step_was_skipped(self) -> bool:
        """Whether the scaler skipped the last step because of a non-finite gradient."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, of the same shape."""

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a scalar over all processes."""

    def total(self, number: float) -> float:
        """The sum of a number over all processes."""

    def max(self, number: int) -> int:
        """The largest number of all processes."""

    def gather_object(self, value: T) -> Sequence[T]:
        """The values of all processes, by rank."""

    def broadcast(self, value: T) -> T:
        """The first process's value."""

    def wait(self) -> None:
        """Waits for all processes."""
