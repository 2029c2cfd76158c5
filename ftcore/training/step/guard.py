"""What stands between a bad micro-batch and the weights: numbers that are none, and memory that does not suffice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ftcore.config.memory_planning import advice
from ftcore.errors import RunError
from ftcore.resources.hardware import NUM_WORKERS
from ftcore.training.batching.collators import Batch
from ftcore.training.batching.samplers import places
from ftcore.training.checkpointing.state import random_state, set_random_state
from ftcore.training.kernels import matmul
from ftcore.training.step.micro_batching import ROWS, parts, split_micro_batches

if TYPE_CHECKING:
    from ftcore.training.context import TrainingContext

_KEPT = ("most", "skipped", "since_logged", "steps_since_logged")


class NotFiniteError(Exception):
    """A loss, gradient or learning rate is not a number: no step is taken with it."""

    def __init__(self, what: str, value: float, rows: Sequence[int]) -> None:
        self.what, self.value, self.rows = what, value, rows


class KeepRowsCollator:
    """A collator whose batches keep their rows."""

    def __init__(self, collator: Callable[[Sequence[Mapping[str, Any]]], Batch]) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        return {**self.collator(rows), ROWS: list(rows)}


class StepGuard:
    """Takes the micro-batches of one optimizer step in passes, again in smaller ones where memory does not suffice.

    Args:
        trainer: whose model is trained.

    Attributes:
        most: rows per micro-batch that memory sufficed for; None while it sufficed for whole ones.
        skipped: steps that were left out because a number was none.
        untrained: steps of this run that changed nothing: skipped, or without a token that is trained.
        since_logged: those of them since the last log line, of ``steps_since_logged``.
        rows_seen: rows of this run.
        rows_in_step: numbers of the rows of the step that is under way.
    """

    def __init__(self, trainer: TrainingContext) -> None:
        self.trainer = trainer
        self.most: int | None = None
        self.skipped = self.untrained = self.rows_seen = 0
        self.since_logged, self.steps_since_logged = 0, 0
        self._taken: list[Batch] = []
        self.rows_in_step: list[int] = []
        self._void = False

    # ---- what is kept in checkpoints ----

    def state(self) -> dict[str, Any]:
        """What a resume needs."""
        return {name: getattr(self, name) for name in _KEPT}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` returned."""
        for name in _KEPT:
            setattr(self, name, state[name])

    # ---- a step ----

    def begin(self, batches: Sequence[Batch], weight: float) -> None:
        """Of the optimizer step over these micro-batches, whose labels weigh so much together."""
        self._taken, self._void = [], False
        self.rows_in_step = [index for batch in batches for index in batch["index"]]
        self.rows_seen += sum(index >= 0 for index in self.rows_in_step)
        self.steps_since_logged += 1
        if not weight and batches:
            self._leave_out()
            self.trainer.reports.say(f"step {self._number}: no token of its rows is trained; {self._places()}")

    def micro_batch(self, batch: Batch, done: Callable[[Sequence[Batch]], list[torch.Tensor]]) -> torch.Tensor:
        """The loss of one micro-batch, its gradient added; 0 where the step is left out.

        Args:
            batch: with its rows.
            done: does it, for batches that are its parts: their losses.
        """
        trainer = self.trainer
        if self._void:
            return torch.zeros((), device=trainer.args.device)
        if not self._taken:
            self._before = (trainer._tr_loss.clone(), dict(trainer.meters.sums), random_state())
        self._taken.append(batch)
        try:
            loss = self._tried([batch], done)
            while loss is None:
                self._halve()
                loss = self._tried(self._taken, done)  # gradients of a half done backward pass are among the others
        except NotFiniteError as found:
            self.left_out(found)
            return torch.zeros((), device=trainer.args.device)
        return loss

    def _tried(
        self, batches: Sequence[Batch], done: Callable[[Sequence[Batch]], list[torch.Tensor]]
    ) -> torch.Tensor | None:
        """The sum of their losses; None where memory did not suffice."""
        try:
            losses = [loss for batch in batches for loss in done(parts(self.trainer, batch, self.most))]
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return None
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.trainer.args.device)

    def _halve(self) -> None:
        """Back to where the step began, with half as many rows at a time."""
        trainer = self.trainer
        together = NUM_WORKERS if self.trainer.side_by_side else 1
        taken = [split_micro_batches(self.trainer, batch, self.most) for batch in self._taken]
        rows = max(sum(map(len, some[:together])) for some in taken)
        if rows == 1 or trainer.args.world_size > 1 or not trainer.loss_is_additive:
            raise self.too_large(f"with {rows} row" + "s" * (rows > 1))
        self.most = -(-rows // 2)
        trainer.model.zero_grad()
        loss, sums, random = self._before
        trainer._tr_loss.copy_(loss)
        trainer.meters.sums = dict(sums)
        set_random_state(random)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        again = f"its rows are done again, {self.most} at a time, as are all that follow"
        trainer.reports.say(
            f"out of memory at step {self._number} with {rows} rows at a time: {again}; "
            f"what the optimizer steps on stays the same; {self._places()}"
        )

    def too_large(self, what: str) -> RunError:
        """The end of a run for which memory does not suffice, with what to change."""
        return RunError(f"out of memory at step {self._number} {what}; {self._places()}; {advice(self.trainer.plan)}")

    # ---- numbers that are none ----

    def check(self, norm: Any) -> Any:
        """The gradient's norm before the optimizer steps; None where the step is left out."""
        trainer = self.trainer
        if self._void:
            return None
        rate = max((group["lr"] for group in trainer.optimizer.param_groups), key=lambda lr: not math.isfinite(lr))
        if not math.isfinite(rate):
            self.left_out(NotFiniteError("learning rate", float(rate), self.rows_in_step))
        elif trainer.accelerator.scaler is None and not math.isfinite(norm):
            self.left_out(NotFiniteError("gradient", float(norm), self.rows_in_step))
        return None if self._void else norm

    def left_out(self, found: NotFiniteError) -> None:
        """Stops the run, or leaves the step out where the file says so.

        Raises:
            RunError: with the step, the learning rate and the places of the rows.
        """
        trainer, options = self.trainer, self.trainer.plan.training
        rate = trainer._get_learning_rate()
        message = (
            f"the {found.what} is {found.value} at step {self._number}, learning rate {rate:g}; "
            f"its rows: {places(trainer.train_dataset, found.rows)}"
        )
        if options.on_nonfinite == "stop" or self.skipped >= options.max_skipped_steps:
            also = f", after {self.skipped} that were skipped" if self.skipped else ""
            raise RunError(f"{message}; no step was taken with it{also}")
        self.skipped += 1
        trainer.model.zero_grad()
        loss, sums, _ = self._before
        trainer._tr_loss.copy_(loss)
        trainer.meters.sums = dict(sums)
        self._leave_out()
        trainer.reports.say(f"{message}; the step is skipped ({self.skipped} of at most {options.max_skipped_steps})")

    def _leave_out(self) -> None:
        """Without gradients the optimizer leaves every parameter and every moment as it is."""
        self._void = True
        self.untrained += 1
        self.since_logged += 1

    # ---- logs ----

    def correct(self, logs: dict[str, float]) -> None:
        """Takes steps that trained nothing out of the means, in place; a mean over none is left out.

        Args:
            logs: with ``loss``, a mean over the steps since the last log line, or with what is logged at the end.
        """
        trainer = self.trainer
        if "loss" in logs:
            _without(logs, "loss", self.steps_since_logged, self.since_logged)
            self.since_logged = self.steps_since_logged = 0
        if "train_loss" in logs:
            _without(logs, "train_loss", trainer.state.global_step - trainer._initial_global_step, self.untrained)
            rows = trainer.accelerator.reduce(torch.tensor(self.rows_seen, device=trainer.args.device), "sum").item()
            # transformers counts a last, short batch as a full one
            logs["train_samples_per_second"] = round(rows / logs["train_runtime"], 3)

    @property
    def stops_at_losses(self) -> bool:
        """Whether a loss that is no number ends the step at once; where processes skip, they do so together later."""
        trainer = self.trainer
        return trainer.plan.training.on_nonfinite == "stop" or trainer.args.world_size == 1

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


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, on the CPU or a GPU."""
    signs = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory", "bad_alloc")
    told = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)
    return told or str(error) in matmul.NO_MEMORY


def something_to_train(dataset: Any, collator: Callable[..., Batch], weight: Callable[[Batch], float]) -> bool:
    """Whether any row has a label; as a rule the first one tells."""
    return any(weight(collator([dataset[index]])) for index in range(len(dataset)))
