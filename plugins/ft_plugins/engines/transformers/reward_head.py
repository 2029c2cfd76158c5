"""Checks that a model has a trained reward head."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, UsageError
from ftcore.models.trained_run import adapter_config

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


def head_problems(plan: Plan, where: str, hint: str, what: str = "") -> Iterable[Problem]:
    """Reports a model or last adapter without a reward head; a model that is not local is not checked.

    transformers initialises a missing head randomly, and its scores look plausible.

    Args:
        plan: plan of the model or adapter.
        where: place that names the model.
        hint: hint of the problem.
        what: word before the model's name in the message.
    """
    adapters, name = plan.model.adapter_name_or_path, f"{what} {plan.model.model_name_or_path}".strip()
    if adapters:
        task = adapter_config(Path(adapters[-1]).expanduser()).get("task_type", "SEQ_CLS")
        if task != "SEQ_CLS":
            yield Problem(f"adapter {adapters[-1]} has no reward head: its task_type is {task}", where, hint)
    elif plan.config is not None:
        kinds = plan.config.get("architectures") or ()
        if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            reason = f"{name} has no reward head: its class is {', '.join(kinds) or 'unknown'}"
            yield Problem(reason, where, hint)


def check_head(plan: Plan, model: Any, where: str, hint: str, what: str = "") -> None:
    """Checks a loaded model: its configuration may have been missing before loading, or may be wrong.

    Args:
        plan: plan of the model.
        model: the loaded model.
        where, hint, what: see `head_problems`.

    Raises:
        UsageError: the model has no adapter, and its files have no reward head.
    """
    new = getattr(model, "ft_new_weights", ())
    if new and not plan.model.adapter_name_or_path:
        name = f"{what} {plan.model.model_name_or_path}".strip()
        raise UsageError(Problem(f"{name} has no reward head: its files lack {new[0]}", where, hint))
