"""What a trainer does in two halves at a time: passes of a step, batches of an evaluation and of a reference."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any, TypeVar

import torch
from accelerate.utils import AutocastKwargs

from ftcore.api.plan import Plan
from ftcore.resources.hardware import NUM_WORKERS
from ftcore.training.batching.collators import Batch, ImageCollator
from ftcore.training.cost_model.tokens import CostModel
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.parallel.cpu_threads.pool import ThreadPool, draws, in_pool, rescales, swaps
from ftcore.training.parallel.cpu_threads.split_forward import SequenceSplit
from ftcore.training.step.metrics import MetricAccumulator

T = TypeVar("T")
U = TypeVar("U")

AHEAD = 8
"""Parts that wait for a crew at a time."""


class MicroBatchExecutor:
    """The part of `FtTrainer` that knows the crew.

    Attributes:
        crew: who works side by side; None where one does all of it.
        adds_up: whether the gradients of two passes may be in memory at once, beside those of the step.
    """

    loss_is_additive = True
    """Whether the loss of a micro-batch is the sum of those of its parts."""
    plan: Plan
    model: Any
    args: Any
    accelerator: Any
    optimizer: Any
    scorer: Any
    noise: Any
    compute_loss: Any
    _prepare_inputs: Any
    _measuring: MetricAccumulator
    crew: ThreadPool | None = None
    adds_up = False

    def gather_crew(self) -> None:
        """Where one process computes on a CPU of several threads, and nothing depends on who is first, there is one."""
        self._mine = threading.local()
        trainer: Any = self
        alone = self.args.world_size == 1 and self.args.device.type == "cpu" and not trainer.is_deepspeed_enabled
        threads, whole = torch.get_num_threads(), self.plan.training.tokens_per_pass is False
        if not alone or threads < NUM_WORKERS or whole or not getattr(self.scorer, "packed", False):
            return
        sees = isinstance(trainer.data_collator.collate, ImageCollator)  # such models note positions on themselves
        alike = not (draws(self.model) or rescales(self.model) or swaps(self.model))
        if not sees and self.noise is None and alike:
            self.crew, self.adds_up = ThreadPool(threads), _trains_little(self.model)
            # autocast would keep its copies of weights for all threads together
            self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
            if (
                isinstance(self.scorer, CausalLMForward) and not self.plan.gradient_checkpointing
            ):  # layers that are computed again would borrow again
                self.scorer.team = SequenceSplit(self.crew, self.scorer, self.adds_up)

    @property
    def side_by_side(self) -> bool:
        """Whether passes of a step are done two at a time."""
        return self.crew is not None and self.loss_is_additive and self.adds_up

    @cached_property
    def work(self) -> CostModel | None:
        """What tokens cost; None for a plugin's own scorer."""
        return CostModel.of(self.scorer) if isinstance(self.scorer, CausalLMForward) else None

    def steps_side_by_side(self, model: Any, parts: Sequence[Batch], count: Any) -> list[torch.Tensor]:
        """The losses of these passes; gradients are added up in their order, whoever is the first."""
        model.train()
        if callable(switch := getattr(self.optimizer, "train", None)):
            switch()
        trained = [tensor for tensor in model.parameters() if tensor.requires_grad]

        def one(part: Batch) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
            loss = self.compute_loss(model, self._prepare_inputs(part), num_items_in_batch=count)
            return loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)

        losses = []
        for loss, gradients in self.each(one, parts):
            for tensor, gradient in zip(trained, gradients, strict=True):
                if gradient is not None and tensor.grad is None:
                    # laid out as the weight, as backward() does it: torch's fused optimizers read both in one order
                    tensor.grad = torch.empty_like(tensor).copy_(gradient)
                elif gradient is not None:
                    tensor.grad.add_(gradient)
            losses.append(loss)
        return losses

    def each(self, job: Callable[[T], U], parts: Iterable[T]) -> Iterator[U]:
        """What a job makes of each part, in their order, side by side where there is a crew.

        What the job notes (`note`) is added up in the order of the parts.
        """
        if self.crew is None:
            yield from map(job, parts)
            return

        def noting(part: T) -> tuple[U, MetricAccumulator]:
            self._mine.meters = MetricAccumulator()
            return job(part), self._mine.meters

        waiting = iter(parts)
        while some := list(islice(waiting, AHEAD)):
            for made, meters in self.crew.each([partial(noting, part) for part in some]):
                self._measuring.take(meters)
                yield made

    def note(self, name: str, values: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Adds numbers of this batch, ``[n]``, to what is logged as their mean; ``weights`` ``[n]``, else all alike."""
        meters = self._mine.meters if in_pool() else self._measuring
        meters.add(name, values, weights)


def _trains_little(model: Any) -> bool:
    """Whether what is trained is a small part of the model."""
    sizes = [(tensor.numel(), tensor.requires_grad) for tensor in model.parameters()]
    return 4 * sum(size for size, trained in sizes if trained) <= sum(size for size, _ in sizes)
