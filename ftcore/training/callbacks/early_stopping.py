"""Early stopping: ends the run when evaluations no longer improve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ftcore.api.plan import Plan

if TYPE_CHECKING:
    from ftcore.training.context import CheckpointedTrainer

_KEPT = ("without", "best_step")


class EarlyStopping(TrainerCallback, ExportableState):
    """Ends training after ``patience`` consecutive evaluations without a new best; a resume continues the count."""

    def __init__(self, patience: int) -> None:
        self.patience, self.without, self.best_step = patience, 0, 0

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **kwargs: Any) -> None:
        name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        if name not in metrics:
            return  # the trainer raises an error that lists the metrics
        value, best = metrics[name], state.best_metric  # the best before this one
        better = best is None or (value > best if args.greater_is_better else value < best)
        self.without = 0 if better else self.without + 1
        self.best_step = state.global_step if better else self.best_step
        self._stop(control)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop(control)

    def _stop(self, control: Any) -> None:
        if self.without >= self.patience:
            control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"args": {"patience": self.patience}, "attributes": {name: getattr(self, name) for name in _KEPT}}


def early_stopping_callbacks(plan: Plan) -> Sequence[TrainerCallback]:
    """The callback, if the plan sets ``early_stopping_steps``."""
    patience = plan.training.early_stopping_steps
    return [] if patience is None else [EarlyStopping(patience)]


def stopped_early(trainer: CheckpointedTrainer) -> str:
    """A line for the user if the run stopped early, else an empty text."""
    found = [each for each in trainer.callback_handler.callbacks if isinstance(each, EarlyStopping)]
    state = trainer.state
    if not found or found[0].without < found[0].patience or state.global_step >= state.max_steps:
        return ""
    return (
        f"stopped early at step {state.global_step} of {state.max_steps}: no improvement since step "
        f"{found[0].best_step}, whose value was {state.best_metric:.6g}"
    )
