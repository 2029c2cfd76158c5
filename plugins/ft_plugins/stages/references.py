"""Options of a reference model, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ftcore.checks import place
from ftcore.components import OptionGroup
from ftcore.errors import Problem, RunError, UsageError
from ftcore.groups import Names

if TYPE_CHECKING:
    from ftcore.plan import Plan
    from ftcore.run import Run


class ReferenceOptions(OptionGroup):
    """The model that the trained one is compared with."""

    ref_model: str | None = None
    """Hub id, folder or offered name of the reference; unset, the model as it is before training, adapters of
    ``adapter_name_or_path`` included. Its vocabulary must be the same."""
    ref_model_adapters: Names = ()
    """Adapters of the reference; without ``ref_model`` they go on ``model_name_or_path``."""


def reference_loader(run: Run) -> Callable[[], Any] | None:
    """Loads the reference that the file names; None where it names none."""
    options: Any = run.plan.stage.options
    if not options.ref_model and not options.ref_model_adapters:
        return None
    return lambda: _load(reference_plan(run.plan), run.model)


def reference_plan(plan: Plan) -> Plan:
    """The plan with the reference in the model's place.

    Raises:
        UsageError: no such model.
    """
    from ftcore.locate import locate

    options: Any = plan.stage.options
    changes: dict[str, Any] = {
        "adapter_name_or_path": options.ref_model_adapters,
        "infer_dtype": plan.precision.compute,
    }
    if not options.ref_model:
        return replace(plan, model=plan.model.model_copy(update=changes))
    changes |= {"model_name_or_path": options.ref_model, "model_revision": "main"}
    located, problems = locate(options.ref_model, plan.plugins, place(plan, "ref_model"), plan.model.cache_dir)
    if problems:
        raise UsageError(problems)
    model = plan.model.model_copy(update=changes)
    return replace(plan, model=model, source=located.source, config=located.config)


def reference_problems(plan: Plan) -> Iterable[Problem]:
    """A reference that does not exist, told from here."""
    try:
        reference_plan(plan)
    except UsageError as error:
        yield from error.problems


def _load(plan: Plan, policy: Any) -> Any:
    from ft_plugins.engines.huggingface import load_adapted

    model = load_adapted(plan).requires_grad_(False)
    sizes = [one.config.get_text_config().vocab_size for one in (model, policy)]
    if sizes[0] != sizes[1]:
        name = plan.model.model_name_or_path
        raise RunError(
            f"ref_model {name} has a vocabulary of {sizes[0]:,} tokens, the trained model one of {sizes[1]:,}"
        )
    return model
