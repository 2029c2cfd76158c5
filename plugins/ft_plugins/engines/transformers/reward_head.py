"""Whether a model has a head that was trained to score."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, UsageError
from ftcore.models.trained_run import adapter_config

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


def head_problems(plan: Plan, where: str, hint: str, what: str = "") -> Iterable[Problem]:
    """A model, or the last of its adapters, without one; nothing of a model that is not here.

    transformers puts random numbers in the place of a missing head, and their scores look like any others.

    Args:
        plan: ``model_name_or_path`` or the last of ``adapter_name_or_path`` has to score.
        where: who names the model.
        hint: what to write instead.
        what: a word before the model's name.
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
    """The same of a model that has been loaded: its config may not have been here before, or may not tell the truth.

    Args:
        plan: by which it was loaded.
        model: itself.
        where, hint, what: see `head_problems`.

    Raises:
        UsageError: it has no adapter, and its head was not in its files.
    """
    new = getattr(model, "ft_new_weights", ())
    if new and not plan.model.adapter_name_or_path:
        name = f"{what} {plan.model.model_name_or_path}".strip()
        raise UsageError(Problem(f"{name} has no reward head: its files lack {new[0]}", where, hint))
