"""How the micro-batches of a step, of an evaluation and of a reference run: one after the other, or concurrently."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch

from ftcore.training.batching.collators import Batch

T = TypeVar("T")
U = TypeVar("U")


class MicroBatchExecutor(Protocol):
    """Runs jobs of micro-batches; a backend brings its own.

    Attributes:
        workers: jobs that run at a time.
        concurrent_training: whether micro-batches with gradients may run at a time. They need a set of gradients each.
        min_tokens: fewest tokens of a micro-batch that is worth a worker of its own.
    """

    workers: int
    concurrent_training: bool
    min_tokens: int

    @property
    def threads(self) -> int:
        """CPU threads of a job."""

    @property
    def max_share(self) -> float:
        """Largest share of a step's work for one worker; above it the step is not divided among workers."""

    def map(self, job: Callable[[T], U], parts: Iterable[T]) -> Iterator[U]:
        """The results of a job for each part, in their order."""

    def run_one(self, job: Callable[[], U]) -> U:
        """The result of one job, with a worker's number of threads."""


class SequentialExecutor:
    """One job after the other, in the caller's thread."""

    workers = 1
    concurrent_training = False
    min_tokens = 1
    max_share = 1.0

    @property
    def threads(self) -> int:
        """All threads of the process."""
        return torch.get_num_threads()

    def map(self, job: Callable[[T], U], parts: Iterable[T]) -> Iterator[U]:
        """The results of a job for each part, in their order."""
        return map(job, parts)

    def run_one(self, job: Callable[[], U]) -> U:
        """The result of the job."""
        return job()


def add_gradients(
    results: Iterable[tuple[torch.Tensor, Sequence[torch.Tensor | None]]], trained: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Adds gradients in the order of the results, so that sums are reproducible; returns the losses.

    Args:
        results: of each micro-batch its loss and the gradients of the trained tensors.
        trained: the tensors.
    """
    losses = []
    for loss, gradients in results:
        for tensor, gradient in zip(trained, gradients, strict=True):
            if gradient is not None and tensor.grad is None:
                # in the weight's memory layout, as backward() does: fused optimizers read both in one order
                tensor.grad = torch.empty_like(tensor).copy_(gradient)
            elif gradient is not None and tensor.grad is not None:
                tensor.grad.add_(gradient)
        losses.append(loss)
    return losses


def loss_and_gradients(
    loss_of: Callable[[Batch], torch.Tensor], trained: Sequence[torch.Tensor], batch: Batch
) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
    """The loss of a micro-batch and its gradients, without touching ``grad`` of the tensors."""
    loss = loss_of(batch)
    return loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)
