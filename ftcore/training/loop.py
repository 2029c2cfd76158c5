"""The training loop: epochs, optimizer steps, micro-batches, and what happens after a step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.debug_utils import DebugOption, DebugUnderflowOverflow
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import SaveStrategy, speed_metrics

from ftcore.training.batching.collators import Batch, tokens_read
from ftcore.training.batching.loaders import ROWS
from ftcore.training.batching.samplers import EpochLoader
from ftcore.training.batching.streaming_loader import StreamLoader
from ftcore.training.checkpointing import state as snapshots
from ftcore.training.checkpointing.checkpointer import refuse_occupied
from ftcore.training.optimization import Schedule, create_optimizer
from ftcore.training.step.executor import add_gradients, loss_and_gradients
from ftcore.training.step.guard import NotFiniteError
from ftcore.training.step.metrics import RunningLoss
from ftcore.training.step.micro_batching import parts, regroup

if TYPE_CHECKING:
    from ftcore.training.context import LoopedTrainer


class TrainingLoop:
    """Takes the steps of a run. The trainer holds all state, so that its parts, checkpoints and callbacks see it.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: LoopedTrainer) -> None:
        self.trainer = trainer

    def run(self, resumed: Path | None) -> dict[str, float]:
        """The run from its first step, or from the step of the checkpoint; returns its means."""
        trainer = self.trainer
        args = trainer.args
        if DebugOption.UNDERFLOW_OVERFLOW in args.debug:
            DebugUnderflowOverflow(trainer.model)
        trainer.evaluating, trainer.flops = False, 0.0  # an earlier call may have ended in an error
        trainer.metrics.training.clear()
        trainer.guard.restart()
        loader = trainer.train_loader()
        trainer.streamed = loader.batches if isinstance(loader, StreamLoader) else None
        length = RunLength.of(args, len(loader))
        self._start_state(resumed, length)
        self._start_optimizer(resumed, length.steps)
        handler = trainer.callback_handler
        handler.model, handler.optimizer, handler.train_dataloader = trainer.model, trainer.optimizer, loader
        handler.lr_scheduler = None if trainer.schedule is None else trainer.schedule.scheduler
        began = time.time()
        trainer.running_loss = RunningLoss(trainer.strategy.device, trainer.state.global_step)
        trainer.tokens_before = trainer.state.num_input_tokens_seen
        trainer.model.zero_grad()
        refuse_occupied(trainer.plan.output_dir, args, trainer.state)
        trainer.event("on_train_begin")
        trainer.position = None
        if resumed is not None and snapshots.load_progress(trainer, resumed):
            self._evaluate_interrupted()
        elif resumed is None and args.eval_on_start:
            trainer.evaluate()
        first, done = trainer.position or divmod(trainer.state.global_step, length.steps_per_epoch)
        for epoch in range(first, length.epochs):
            if trainer.state.global_step >= length.steps or trainer.control.should_training_stop:
                break  # a run that is finished, or stopped before its first step, takes no further step
            trainer.event("on_epoch_begin")
            if trainer.control.should_training_stop:
                break
            self._run_epoch(loader, epoch, done if epoch == first else None, length, began)
        done = trainer.state.global_step - trainer.running_loss.first_step
        # the guard replaces the number of rows by that of the rows that were read
        metrics: dict[str, float] = speed_metrics("train", began, num_samples=done, num_steps=done)
        trainer.store_flops()
        metrics["total_flos"] = trainer.state.total_flos
        metrics["train_loss"] = trainer.running_loss.mean(trainer.state.global_step)
        return metrics

    def _start_state(self, resumed: Path | None, length: RunLength) -> None:
        """The trainer state, of a new run or of the checkpoint, whose weights are loaded."""
        trainer = self.trainer
        local, world = trainer.state.is_local_process_zero, trainer.state.is_world_process_zero
        if resumed is None:
            trainer.state = TrainerState()
        else:
            trainer.checkpointer.load_weights(resumed)
            trainer.state = trainer.checkpointer.load_state(resumed)
        state = trainer.state
        state.train_batch_size = trainer.args.per_device_train_batch_size
        state.compute_steps(trainer.args, length.steps)  # anew: a resume may have other logging_steps
        state.max_steps, state.num_train_epochs = length.steps, length.epochs
        state.is_local_process_zero, state.is_world_process_zero = local, world

    def _start_optimizer(self, resumed: Path | None, steps: int) -> None:
        trainer = self.trainer
        created = create_optimizer(trainer.plan, trainer.model, trainer.args)
        trainer.optimizer = trainer.strategy.prepare(trainer.model, created)
        trainer.schedule = Schedule(trainer.args, trainer.optimizer, steps)
        if resumed is not None:
            snapshots.load_snapshot(trainer, resumed)

    def _run_epoch(
        self, loader: EpochLoader | StreamLoader, epoch: int, done: int | None, length: RunLength, began: float
    ) -> None:
        """The steps of an epoch, after those that are ``done``; None for an epoch that is not this process's first."""
        trainer = self.trainer
        accumulated = trainer.args.gradient_accumulation_steps
        loader.set_epoch(epoch, (done or 0) * accumulated)
        batches = iter(()) if trainer.rollouts is not None else iter(loader)
        if done is not None:
            trainer.checkpointer.load_random_state()  # after what loading and the evaluation have drawn
        norm, rate, saves = None, None, False
        for step in range(done or 0, length.steps_per_epoch):
            last = step == length.steps_per_epoch - 1
            count = length.batches - step * accumulated if last else accumulated
            stepped = self._step(self._micro_batches(batches, count))
            if stepped is None:
                break
            norm, rate = stepped
            trainer.state.epoch = epoch + min((step + 1) * accumulated, length.batches) / length.batches
            trainer.event("on_step_end")
            self._note_position(epoch, step + 1, length)
            self._log_step(norm, rate, began)
            self._evaluate_if_due()
            if last or trainer.state.global_step >= length.steps or trainer.control.should_epoch_stop:
                # written after the evaluation that may follow at the end of the epoch: a checkpoint from before it
                # would, after a kill, resume behind the evaluation, which would be lost
                saves, trainer.control.should_save = trainer.control.should_save, False
                break
            self._save_if_due()
            if trainer.control.should_epoch_stop or trainer.control.should_training_stop:
                break
        if trainer.control.should_epoch_stop:  # also by the save
            self._note_position(epoch, length.steps_per_epoch, length)
        trainer.event("on_epoch_end")
        trainer.control.should_save |= saves
        self._log_step(norm, rate, began)
        self._evaluate_if_due(saves)
        self._save_if_due()

    def _note_position(self, epoch: int, done: int, length: RunLength) -> None:
        """Notes where a resume goes on, if the steps alone do not tell it: a callback has ended an epoch early."""
        trainer = self.trainer
        done = length.steps_per_epoch if trainer.control.should_epoch_stop else done
        where = (epoch + done // length.steps_per_epoch, done % length.steps_per_epoch)
        trainer.position = None if where == divmod(trainer.state.global_step, length.steps_per_epoch) else where

    def _micro_batches(self, batches: Iterator[Batch], count: int) -> list[Batch]:
        """This process's batches of the next optimizer step, with their rows."""
        trainer = self.trainer
        if trainer.rollouts is not None:
            rows = trainer.rollouts.step(trainer.state.global_step)
            return [{**trainer.data_collator(some), ROWS: list(some)} for some in rows]
        return regroup(trainer, list(islice(batches, count)))

    def _step(self, batches: list[Batch]) -> tuple[Any, float] | None:
        """One optimizer step; returns the norm of the gradients (None where it was skipped) and the learning rate.

        Returns None where a callback stopped the run or the epoch between micro-batches: the step is not taken.
        """
        trainer = self.trainer
        before = trainer.flops, trainer.state.num_input_tokens_seen
        args, strategy = trainer.args, trainer.strategy
        assert trainer.schedule is not None
        total = strategy.total(sum(trainer.objective.weight(batch) for batch in batches))
        weight = torch.tensor(total, dtype=torch.float64)  # on the host: reading it does not wait for the device
        trainer.guard.begin(batches, total)
        trainer.objective.begin_step(trainer.on_device(part) for batch in batches for part in parts(trainer, batch))
        self._count(batches)
        for number, batch in enumerate(batches):
            trainer.event("on_substep_end" if number else "on_step_begin")
            if number and (trainer.control.should_training_stop or trainer.control.should_epoch_stop):
                trainer.guard.abandon()
                trainer.flops, trainer.state.num_input_tokens_seen = before
                return None
            with strategy.no_sync(last=number == len(batches) - 1):
                trainer.running_loss.sum += trainer.guard.micro_batch(batch, partial(self._losses, weight))
        limit = args.max_grad_norm if args.max_grad_norm > 0 else math.inf
        norm = trainer.guard.check(strategy.clip_gradients(trainer.model.parameters(), limit))
        trainer.event("on_pre_optimizer_step")
        trainer.optimizer.step()
        trainer.event("on_optimizer_step")
        rate = trainer.schedule.rate()  # before the schedule's step: the rate of this step
        if not strategy.step_was_skipped():
            trainer.schedule.step()
        trainer.model.zero_grad()
        trainer.state.global_step += 1
        return norm, rate

    def _losses(self, weight: torch.Tensor, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """The losses of micro-batches, whose gradients are added."""
        trainer = self.trainer
        trainer.model.train()
        if callable(switch := getattr(trainer.optimizer, "train", None)):  # schedule-free optimizers
            switch()

        def loss_of(batch: Batch) -> torch.Tensor:
            return self._loss(trainer.on_device(batch), weight)

        if len(batches) > 1 and trainer.runs_concurrently:
            trained = [tensor for tensor in trainer.model.parameters() if tensor.requires_grad]
            return add_gradients(trainer.each(partial(loss_and_gradients, loss_of, trained), batches), trained)
        return [self._backward(loss_of(batch)) for batch in batches]

    def _loss(self, batch: Batch, weight: torch.Tensor) -> torch.Tensor:
        """The part of the step's mean loss that a micro-batch has."""
        trainer = self.trainer
        if trainer.noise is not None:
            trainer.noise.expect(batch)
        with trainer.autocast():
            total = trainer.strategy.forward(trainer.objective.loss_sum, batch)
        if not torch.isfinite(total) and trainer.guard.stops_at_losses:
            raise NotFiniteError("loss", total.item(), batch["index"])
        # DDP averages gradients over processes, and the loss is a sum over them: hence the factor
        return total * trainer.strategy.world_size / weight.to(total.dtype)

    def _backward(self, loss: torch.Tensor) -> torch.Tensor:
        trainer = self.trainer
        every = trainer.args.torch_empty_cache_steps
        if every is not None and trainer.state.global_step % every == 0 and torch.cuda.is_available():
            torch.cuda.empty_cache()
        rate = trainer.learning_rate() if trainer.plan.optimizer.component.steps_in_backward else None
        trainer.strategy.backward(loss, rate)
        return loss.detach()

    def _count(self, batches: Sequence[Batch]) -> None:
        """Counts floating point operations, and the tokens of all sequences; a shared prefix once per sequence."""
        trainer = self.trainer
        trainer.flops += 6.0 * sum(batch["input_ids"].numel() for batch in batches) * self._dense
        trainer.state.num_input_tokens_seen += int(trainer.strategy.total(sum(map(tokens_read, batches))))

    @cached_property
    def _dense(self) -> int:
        """Parameters without the embeddings."""
        return int(self.trainer.model.num_parameters(exclude_embeddings=True))

    def _log_step(self, norm: Any, rate: float | None, began: float) -> None:
        """Writes a log line if one is due."""
        trainer = self.trainer
        step = trainer.state.global_step
        if not trainer.control.should_log or step <= trainer.running_loss.logged_step:
            return
        logs: dict[str, float] = {"loss": trainer.running_loss.drain(trainer.strategy, step)}
        if norm is not None:
            logs["grad_norm"] = norm.item() if isinstance(norm, torch.Tensor) else norm
        logs["learning_rate"] = trainer.learning_rate() if rate is None else rate
        trainer.store_flops()
        trainer.log(logs, began)

    def _evaluate_if_due(self, waiting: bool = False) -> None:
        """Evaluates if that is due; ``waiting`` is whether a save waits for the evaluation."""
        trainer = self.trainer
        if trainer.control.should_evaluate:
            best = trainer.evaluator.evaluate_in_training()
            if trainer.args.save_strategy == SaveStrategy.BEST:
                trainer.control.should_save = best or waiting

    def _evaluate_interrupted(self) -> None:
        """The evaluation in which the run was stopped, and the save that waited for it."""
        trainer = self.trainer
        trainer.control.should_evaluate = True
        self._evaluate_if_due(trainer.control.should_save)
        trainer.checkpointer.load_random_state()  # the evaluation may have drawn
        self._save_if_due()

    def _save_if_due(self) -> None:
        trainer = self.trainer
        if trainer.control.should_save:
            trainer.save_checkpoint()
            trainer.event("on_save")
        trainer.stop_if_asked()


class RunLength:
    """The length of a run.

    Attributes:
        batches: micro-batches of an epoch and process.
        steps_per_epoch: optimizer steps of an epoch; the last one may have fewer micro-batches.
        steps: optimizer steps of the run.
        epochs: epochs that the run begins.
    """

    def __init__(self, batches: int, accumulated: int, epochs: float, most: int) -> None:
        self.batches, self.steps_per_epoch = batches, max(-(-batches // accumulated), 1)
        self.steps = most if most > 0 else math.ceil(epochs * self.steps_per_epoch)
        self.epochs = -(-self.steps // self.steps_per_epoch) if most > 0 else math.ceil(epochs)

    @classmethod
    def of(cls, args: Any, batches: int) -> RunLength:
        """From TrainingArguments and the length of the loader."""
        return cls(batches, args.gradient_accumulation_steps, args.num_train_epochs, args.max_steps)
