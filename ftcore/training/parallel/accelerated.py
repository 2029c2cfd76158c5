"""The strategies ``single`` and ``ddp``, on accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    broadcast_object_list,
    gather_object,
)
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from ftcore.training.batching.collators import Batch

T = TypeVar("T")


class SingleProcess:
    """One process trains the whole model.

    Args:
        args: of the run.
        handlers: further settings of accelerate.
    """

    name = "single"
    splits_batches = True

    def __init__(self, args: TrainingArguments, handlers: Sequence[Any] = ()) -> None:
        self.world_size, self.rank, self.is_main = args.world_size, args.process_index, bool(args.should_save)
        self.device = args.device
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
        # the trainer accumulates itself: with more than one step accelerate would divide the loss once more
        plugin = GradientAccumulationPlugin(num_steps=1)
        self.accelerator = Accelerator(
            mixed_precision=precision, gradient_accumulation_plugin=plugin, kwargs_handlers=list(handlers)
        )
        # accelerate shares this among all Accelerators of a process, and optimizers do not step while it is False, as
        # another trainer may have left it that was stopped between micro-batches
        self.accelerator.sync_gradients = True
        self._autocast = AutocastKwargs()

    @property
    def scaler(self) -> Any:
        """See `ftcore.training.parallel.strategy.ParallelStrategy`."""
        return self.accelerator.scaler

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer with accelerate's scaler; the model stays as it is."""
        return cast("torch.optim.Optimizer", self.accelerator.prepare_optimizer(optimizer))

    def forward(self, loss_of: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
        """``loss_of(batch)``."""
        return loss_of(batch)

    def full_tensor(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight: every process has it whole."""
        return weight

    def autocast(self) -> AbstractContextManager[Any]:
        """accelerate's autocast."""
        return cast("AbstractContextManager[Any]", self.accelerator.autocast(autocast_handler=self._autocast))

    def share_autocast_cache(self, shared: bool) -> None:
        """See `ftcore.training.parallel.strategy.ParallelStrategy`."""
        self._autocast = AutocastKwargs(cache_enabled=shared)

    def backward(self, loss: torch.Tensor, learning_rate: float | None = None) -> None:
        """The backward pass, with the scaler where there is one."""
        more = {} if learning_rate is None else {"learning_rate": learning_rate}
        self.accelerator.backward(loss, **more)

    def no_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Nothing: there is no exchange."""
        return nullcontext()

    def clip_gradients(self, parameters: Iterable[torch.Tensor], limit: float) -> torch.Tensor:
        """The norm before clipping; gradients are unscaled first."""
        return cast("torch.Tensor", self.accelerator.clip_grad_norm_(parameters, limit))

    def step_was_skipped(self) -> bool:
        """See `ftcore.training.parallel.strategy.ParallelStrategy`."""
        return bool(self.accelerator.optimizer_step_was_skipped)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        return cast("torch.Tensor", self.accelerator.reduce(values, "sum"))

    def mean(self, value: torch.Tensor) -> float:
        """The mean over all processes."""
        return float(self.accelerator.gather(value).mean())

    def total(self, number: float) -> float:
        """The sum of a number over all processes, in float64."""
        if self.world_size == 1:
            return number
        return float(self.sum(torch.tensor(number, dtype=torch.float64, device=self.device)))

    def max(self, number: int) -> int:
        """The largest number of all processes."""
        return int(self.accelerator.gather(torch.tensor([number], device=self.device)).max())

    def gather_object(self, value: T) -> Sequence[T]:
        """The values of all processes."""
        return [value] if self.world_size == 1 else cast("list[T]", gather_object([value]))

    def broadcast(self, value: T) -> T:
        """The first process's value."""
        held = [value]
        if self.world_size > 1:
            broadcast_object_list(held)
        return held[0]

    def wait(self) -> None:
        """Waits for all processes."""
        self.accelerator.wait_for_everyone()


class _LossModule(nn.Module):
    """A module whose forward computes a loss with the model inside it.

    DDP prepares the exchange of gradients in its forward, and a stage's loss may need several passes of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss_of: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
        """``loss_of(batch)``."""
        return loss_of(batch)


class DistributedDataParallel(SingleProcess):
    """Every process trains the whole model on its rows, and gradients are averaged (torch's DDP).

    Args:
        args: of the run; ``ddp_*`` are DDP's options.
        may_leave_unused: whether a loss may not depend on all trained parameters, so that DDP must search for those in
            each forward pass, unless ``ddp_find_unused_parameters`` says otherwise.
    """

    name = "ddp"
    splits_batches = False

    def __init__(self, args: TrainingArguments, may_leave_unused: bool) -> None:
        unused = args.ddp_find_unused_parameters
        options = {
            "find_unused_parameters": may_leave_unused if unused is None else unused,
            "bucket_cap_mb": args.ddp_bucket_cap_mb,
            "broadcast_buffers": args.ddp_broadcast_buffers,
            "static_graph": args.ddp_static_graph,
        }
        given = {name: value for name, value in options.items() if value is not None}
        super().__init__(args, [DistributedDataParallelKwargs(**given)])
        self._wrapped: nn.Module | None = None

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Wraps the model in DDP."""
        self._wrapped = self.accelerator.prepare_model(_LossModule(model))
        return super().prepare(model, optimizer)

    def forward(self, loss_of: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
        """``loss_of(batch)`` inside DDP's forward."""
        if self._wrapped is None or not torch.is_grad_enabled():
            return loss_of(batch)
        return cast("torch.Tensor", self._wrapped(loss_of, batch))

    def no_sync(self, last: bool) -> AbstractContextManager[Any]:
        """DDP's ``no_sync`` except in the last micro-batch."""
        return nullcontext() if last else self.accelerator.no_sync(self._wrapped)


def strategy_of(args: TrainingArguments, model: nn.Module, recomputes: bool) -> SingleProcess:
    """The strategy of this process: ``ddp`` where a launcher started several.

    Args:
        args: of the run.
        model: to train.
        recomputes: whether gradient checkpointing is on.
    """
    if args.world_size == 1:
        return SingleProcess(args)
    # as transformers' Trainer: a whole model that is recomputed uses all of its parameters
    return DistributedDataParallel(args, may_leave_unused=not (recomputes and isinstance(model, PreTrainedModel)))
