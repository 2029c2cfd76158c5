"""Models besides the trained one: references and reward models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, RunError, UsageError

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


def plan_with(plan: Plan, option: str, name: str | None, adapters: tuple[str, ...], for_adapters: str) -> Plan:
    """The plan with an auxiliary model as its model.

    Args:
        plan: of the run.
        option: the option that names the auxiliary model, for messages.
        name: hub id, folder or registered name; None for the run's base model.
        adapters: loaded on it.
        for_adapters: the hint where ``name`` is an adapter.

    Raises:
        UsageError: no such model.
    """
    from ftcore.models.resolve import resolve_model

    changes: dict[str, Any] = {"adapter_name_or_path": adapters, "infer_dtype": plan.precision.compute}
    if not name:
        return replace(plan, model=plan.model.model_copy(update=changes))
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise UsageError(Problem(f"{option} {name} is an adapter, not a model", plan.where(option), for_adapters))
    changes |= {"model_name_or_path": name, "model_revision": "main"}
    located, problems = resolve_model(name, plan.plugins, plan.where(option), plan.model.cache_dir)
    if problems:
        raise UsageError(problems)
    model = plan.model.model_copy(update=changes)
    return replace(plan, model=model, source=located.source, config=located.config)


def load_frozen(plan: Plan, trained: Any, what: str) -> Any:
    """Loads an auxiliary model, frozen.

    Args:
        plan: see `plan_with`.
        trained: the run's model.
        what: the auxiliary model, for messages.

    Raises:
        RunError: the sizes of the vocabularies differ.
    """
    from ft_plugins.engines.transformers.loading import load_adapted

    model = load_adapted(plan).requires_grad_(False)
    sizes = [one.config.get_text_config().vocab_size for one in (model, trained)]
    if sizes[0] != sizes[1]:
        raise RunError(f"{what} has a vocabulary of {sizes[0]:,} tokens, the trained model one of {sizes[1]:,}")
    return model
