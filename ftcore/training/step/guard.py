"""Guards of an optimizer step: non-finite losses and gradients, and out of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ftcore.config.memory_planning import advice
from ftcore.errors import RunError
from ftcore.training.backend import BackendRuntime
from ftcore.training.batching.collators import Batch
from ftcore.training.batching.samplers import places
from ftcore.training.checkpointing.state import random_state, set_random_state
from ftcore.training.step.micro_batching import parts, split_micro_batches

if TYPE_CHECKING:
    from ftcore.training.context import TrainingContext

_SAVED = {name: name for name in ("skipped", "since_logged", "steps_since_logged")} | {"max_rows": "most"}
"""Attribute -> its key in a checkpoint."""

_COUNTS = ("untrained", "since_logged", "steps_since_logged", "rows_seen")
"""What a step adds to when it begins."""


class NotFiniteError(Exception):
    """A loss, gradient or learning rate is NaN or infinite: the optimizer must not step."""

    def __init__(self, what: str, value: float, rows: Sequence[int]) -> None:
        self.what, self.value, self.rows = what, value, rows


class StepGuard:
    """Runs the micro-batches of an optimizer step; retries with fewer rows at a time when memory runs out.

    Args:
        trainer: whose model is trained.

    Attributes:
        max_rows: most rows per micro-batch after an out-of-memory error; None before one.
        skipped: steps skipped because of a non-finite number.
        untrained: steps of this run without an update: skipped, or without a trained token.
        since_logged: those of them since the last log line, out of ``steps_since_logged`` steps.
        rows_seen: rows of this run.
        rows_in_step: numbers of the rows of the current step.
    """

    def __init__(self, trainer: TrainingContext) -> None:
        self.trainer = trainer
        self.device = trainer.strategy.device
        self.max_rows: int | None = None
        self.restart()

    def restart(self) -> None:
        """Counts from 0, for a new call of the training; the memory is the same, and so is `max_rows`."""
        self.skipped = self.untrained = self.rows_seen = 0
        self.since_logged = self.steps_since_logged = 0
        self._batches: list[Batch] = []
        self._counts: Mapping[str, int] = {}
        self.rows_in_step: list[int] = []
        self._skipping = False

    # ---- state in checkpoints ----

    def state(self) -> dict[str, Any]:
        """The state that a resume needs."""
        return {key: getattr(self, name) for name, key in _SAVED.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        for name, key in _SAVED.items():
            setattr(self, name, state[key])

    # ---- a step ----

    def begin(self, batches: Sequence[Batch], weight: float) -> None:
        """Starts an optimizer step over these micro-batches; ``weight`` is the total weight of their labels."""
        self._counts = {name: getattr(self, name) for name in _COUNTS}
        self._batches, self._skipping = [], False
        self.rows_in_step = [index for batch in batches for index in batch["index"]]
        self.rows_seen += sum(index >= 0 for index in self.rows_in_step)
        self.steps_since_logged += 1
        if not weight and batches:
            self._mark_skipped()
            self.trainer.reports.info(f"step {self._number}: no token of its rows has a label; {self._places()}")

    def micro_batch(self, batch: Batch, run: Callable[[Sequence[Batch]], list[torch.Tensor]]) -> torch.Tensor:
        """The loss of one micro-batch, whose gradient is added; 0 in a skipped step.

        Args:
            batch: with its rows.
            run: computes the losses and adds the gradients of the batches that it is split into.
        """
        trainer = self.trainer
        if self._skipping:
            return torch.zeros((), device=self.device)
        if not self._batches:
            self._before = (trainer.running_loss.sum.clone(), dict(trainer.metrics.training.sums), random_state())
        self._batches.append(batch)
        try:
            loss = self._tried([batch], run)
            while loss is None:
                self._retry_smaller()
                # all batches of the step again: a failed backward pass has already added to the gradients
                loss = self._tried(self._batches, run)
        except NotFiniteError as found:
            self.skip_step(found)
            return torch.zeros((), device=self.device)
        return loss

    def _tried(
        self, batches: Sequence[Batch], run: Callable[[Sequence[Batch]], list[torch.Tensor]]
    ) -> torch.Tensor | None:
        """The sum of their losses; None after an out-of-memory error."""
        try:
            losses = [loss for batch in batches for loss in run(parts(self.trainer, batch, self.max_rows))]
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error, self.trainer.backend):
                raise
            return None
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.device)

    def _retry_smaller(self) -> None:
        """Restores the state at the start of the step, and halves the rows per micro-batch."""
        trainer = self.trainer
        together = trainer.executor.workers if trainer.runs_concurrently else 1
        taken = [split_micro_batches(self.trainer, batch, self.max_rows) for batch in self._batches]
        rows = max(sum(map(len, some[:together])) for some in taken)
        if rows == 1 or not trainer.strategy.splits_batches or not trainer.loss_is_additive:
            raise self.too_large(f"with {rows} row" + "s" * (rows > 1))
        self.max_rows = -(-rows // 2)
        self._forget()
        set_random_state(self._before[2])
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        again = f"this step and all later ones use micro-batches of {self.max_rows} rows"
        trainer.reports.info(
            f"out of memory at step {self._number} with {rows} rows at a time: {again}; "
            f"the optimizer's batches stay the same; {self._places()}"
        )

    def too_large(self, what: str) -> RunError:
        """The error of a run that needs more memory, with the options that reduce it."""
        return RunError(f"out of memory at step {self._number} {what}; {self._places()}; {advice(self.trainer.plan)}")

    # ---- non-finite numbers ----

    def check(self, norm: Any) -> Any:
        """Checks the gradient norm before the optimizer steps; returns None in a skipped step."""
        trainer = self.trainer
        if self._skipping:
            return None
        rate = max((group["lr"] for group in trainer.optimizer.param_groups), key=lambda lr: not math.isfinite(lr))
        if not math.isfinite(rate):
            self.skip_step(NotFiniteError("learning rate", float(rate), self.rows_in_step))
        elif trainer.strategy.scaler is None and not math.isfinite(norm):
            self.skip_step(NotFiniteError("gradient", float(norm), self.rows_in_step))
        return None if self._skipping else norm

    def skip_step(self, found: NotFiniteError) -> None:
        """Skips the step with ``on_nonfinite: skip``, else stops the run.

        Raises:
            RunError: with the step, the learning rate and the places of the rows.
        """
        trainer, options = self.trainer, self.trainer.plan.training
        rate = trainer.learning_rate()
        message = (
            f"the {found.what} is {found.value} at step {self._number}, learning rate {rate:g}; "
            f"its rows: {places(trainer.train_dataset, found.rows)}"
        )
        if options.on_nonfinite == "stop" or self.skipped >= options.max_skipped_steps:
            also = f" (skipped before: {self.skipped})" if self.skipped else ""
            raise RunError(f"{message}; the weights were not updated{also}")
        self.skipped += 1
        self._forget()
        self._mark_skipped()
        trainer.reports.info(f"{message}; the step is skipped ({self.skipped} of at most {options.max_skipped_steps})")

    def abandon(self) -> None:
        """Ends the step before the optimizer steps, as if it had not begun."""
        if self._batches:
            self._forget()
        for name, count in self._counts.items():
            setattr(self, name, count)

    def _forget(self) -> None:
        """Removes the step's gradients, losses and metrics."""
        trainer = self.trainer
        trainer.model.zero_grad()
        loss, sums, _ = self._before
        trainer.running_loss.sum.copy_(loss)
        trainer.metrics.training.sums = dict(sums)

    def _mark_skipped(self) -> None:
        """Marks the step as skipped. Without gradients the optimizer changes no parameter and no moment."""
        self._skipping = True
        self.untrained += 1
        self.since_logged += 1

    # ---- logs ----

    def correct(self, logs: dict[str, float]) -> None:
        """Removes steps without an update from the means, in place; a mean over no steps is deleted.

        Args:
            logs: of a log line, with ``loss``, the mean since the last one; or of the end, with ``train_loss``.
        """
        trainer = self.trainer
        if "loss" in logs:
            _without(logs, "loss", self.steps_since_logged, self.since_logged)
            self.since_logged = self.steps_since_logged = 0
        if "train_loss" in logs:
            _without(logs, "train_loss", trainer.state.global_step - trainer.running_loss.first_step, self.untrained)
            rows = trainer.strategy.total(self.rows_seen)
            # counted, because the last batch of an epoch may be incomplete
            logs["train_samples_per_second"] = round(rows / logs["train_runtime"], 3)

    @property
    def stops_at_losses(self) -> bool:
        """Whether a non-finite loss ends the step at once. Several processes that skip steps decide later, together."""
        trainer = self.trainer
        return trainer.plan.training.on_nonfinite == "stop" or trainer.strategy.world_size == 1

    @property
    def _number(self) -> int:
        return self.trainer.state.global_step + 1

    def _places(self) -> str:
        return f"its rows: {places(self.trainer.train_dataset, self.rows_in_step)}"


def _without(logs: dict[str, float], name: str, steps: int, untrained: int) -> None:
    if untrained >= steps:
        del logs[name]
        logs.pop("grad_norm", None)
    elif untrained:
        logs[name] *= steps / (steps - untrained)


def out_of_memory(error: BaseException, backend: BackendRuntime) -> bool:
    """Whether an error means out of memory, by torch's signs or the backend's own."""
    signs = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory", "bad_alloc")
    told = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)
    return told or backend.is_out_of_memory(error)


def something_to_train(dataset: Any, collator: Callable[..., Batch], weight: Callable[[Batch], float]) -> bool:
    """Whether any row has a label; usually the first one has."""
    return any(weight(collator([dataset[index]])) for index in range(len(dataset)))
