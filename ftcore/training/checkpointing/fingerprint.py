"""The options that a resume compares with its checkpoint's: all except those declared harmless. Imports no torch.

Declarations: `ftcore.api.components.OptionGroup.resume_harmless` for options of a group;
`ftcore.config.training_answers.RESUME_HARMLESS` for fields of TrainingArguments;
`ftcore.api.components.Component.resume_harmless` for components.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ftcore.api.component import Harmless, OptionGroup, why_harmless
from ftcore.api.option_groups import GROUPS
from ftcore.api.plan import Plan, Selected
from ftcore.config.hf_training_arguments import training_fields
from ftcore.config.training_answers import PASSED_ON, RESUME_HARMLESS


def compared_options(plan: Plan) -> dict[str, Any]:
    """Every option whose change prevents a resume, and values derived from options with several spellings.

    Returns:
        Name -> JSON value: core options by name, component options as ``method lora_rank``, components by kind as
        ``distribution:name version``.
    """
    values: dict[str, Any] = {}
    for owner in GROUPS:
        values |= _compared(plan, getattr(plan, owner))
    for name in PASSED_ON:
        if not _is_harmless(RESUME_HARMLESS.get(name), plan):
            values[name] = plan.transformers.get(name, training_fields()[name].default)
    for kind, selected in plan.components.items():
        if not _is_harmless(selected.component.resume_harmless, plan):
            values |= dict(_of_component(plan, kind, selected))
    return values | _derived(plan)


def _of_component(plan: Plan, kind: str, selected: Selected[Any]) -> Iterator[tuple[str, Any]]:
    yield kind, f"{selected.full_name} {selected.version}"
    for name, value in _compared(plan, selected.options).items():
        yield f"{kind} {name}", value


def _compared(plan: Plan, options: OptionGroup) -> Mapping[str, Any]:
    group = type(options)
    harmless = {name for name in group.model_fields if _is_harmless(why_harmless(group, name), plan)}
    return options.model_dump(mode="json", exclude=harmless)


def _is_harmless(declared: Harmless | None, plan: Plan) -> bool:
    return declared is not None and declared.holds(plan)


def _derived(plan: Plan) -> dict[str, Any]:
    return {
        "compute dtype": plan.precision.compute,
        "trained dtype": plan.precision.trained,
        "torch_compile": plan.training.compiler,
        # the cache computes frozen layers row by row, which differs in the last bits
        "cache_frozen_prefix": plan.training.cache_frozen_prefix is not False,
    }
