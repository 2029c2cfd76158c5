"""Checks of options that depend on evaluations: early stopping, the best checkpoint, and when it is saved."""

from __future__ import annotations

from collections.abc import Iterable

from ftcore.api.plan import Plan
from ftcore.errors import Problem


def problems(plan: Plan) -> Iterable[Problem]:
    """Options that need evaluations, or checkpoints at certain steps, which the plan does not have."""
    training, given = plan.training, plan.transformers
    best = bool(given.get("load_best_model_at_end"))
    needs_evaluation = {"early_stopping_steps": training.early_stopping_steps is not None}
    needs_evaluation |= {"load_best_model_at_end": best, "save_strategy": training.save_strategy == "best"}
    missing = training.eval_strategy == "no"
    for option in (option for option, is_set in needs_evaluation.items() if is_set and missing):
        hint = "write eval_strategy: steps or epoch"
        yield Problem(f"{option} needs evaluations during training, and there are none", plan.where(option), hint)
    if not best or training.eval_strategy == "no" or training.save_strategy == "best":
        return
    if training.save_strategy != training.eval_strategy:
        strategies = f"eval_strategy is {training.eval_strategy}, save_strategy is {training.save_strategy}"
        message = f"load_best_model_at_end needs the same strategy for both, but {strategies}"
        hint = f"write save_strategy: {training.eval_strategy}, or best"
        yield Problem(message, plan.where("load_best_model_at_end"), hint)
    elif training.save_strategy == "steps" and not _multiple(training.save_steps, evaluation_steps(plan)):
        every = evaluation_steps(plan)
        message = (
            f"load_best_model_at_end: save_steps {training.save_steps:g} is not a multiple of eval_steps {every:g}"
        )
        hint = "write save_steps: a multiple of it, or save_strategy: best"
        yield Problem(message, plan.where("load_best_model_at_end"), hint)


def evaluation_steps(plan: Plan) -> float:
    """Steps between evaluations."""
    return plan.training.eval_steps or plan.training.logging_steps


def _multiple(number: float, of: float) -> bool:
    """Whether a number of steps, or a share (below 1) of all, is a multiple of another of the same kind."""
    if (number < 1) != (of < 1):
        return False
    times = number / of
    return abs(times - round(times)) < 1e-9
