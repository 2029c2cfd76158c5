"""Options of a reference model, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ft_plugins.stages.auxiliary_models import load_frozen, plan_with
from ftcore.api.components import OptionGroup
from ftcore.api.option_groups import Names
from ftcore.config.validation.core import adapter_problems
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from ftcore.api.plan import Plan, Run


class ReferenceOptions(OptionGroup):
    """The model that the trained one is compared with."""

    ref_model: str | None = None
    """Reference model: hub id, folder or registered name. Unset, the model before training, with the adapters of
    ``adapter_name_or_path``. Its vocabulary must have the same size."""
    ref_model_adapters: Names = ()
    """Adapters of the reference; without ``ref_model`` they are loaded on ``model_name_or_path``."""


def reference_loader(run: Run) -> Callable[[], Any] | None:
    """Loads the reference that the options name; None where they name none."""
    options: Any = run.plan.stage.options
    if not options.ref_model and not options.ref_model_adapters:
        return None

    def load() -> Any:
        other = reference_plan(run.plan)
        return load_frozen(other, run.model, f"ref_model {other.model.model_name_or_path}")

    return load


def reference_plan(plan: Plan) -> Plan:
    """The plan with the reference as its model.

    Raises:
        UsageError: no such model.
    """
    options: Any = plan.stage.options
    return plan_with(
        plan,
        "ref_model",
        options.ref_model,
        options.ref_model_adapters,
        f"write ref_model_adapters: {options.ref_model}, and remove ref_model",
    )


def reference_beside(plan: Plan) -> Mapping[str, Plan]:
    """The reference, as `ftcore.api.components.Stage.auxiliary_models` returns it."""
    options: Any = plan.stage.options
    return {"ref_model": reference_plan(plan)} if options.ref_model or options.ref_model_adapters else {}


def reference_problems(plan: Plan) -> Iterable[Problem]:
    """A reference that does not exist, found before anything is loaded."""
    options: Any = plan.stage.options
    for name in options.ref_model_adapters:
        yield from adapter_problems(plan, "ref_model_adapters", name)
    try:
        reference_plan(plan)
    except UsageError as error:
        yield from error.problems
