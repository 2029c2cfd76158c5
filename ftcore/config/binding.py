"""Binds settings to options. Every option has one owner, and all mistakes are collected at once."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ftcore.api.components import KINDS, ForeignOption, OptionGroup
from ftcore.api.option_groups import GROUPS
from ftcore.api.plan import Bound
from ftcore.api.registry import Plugins
from ftcore.config.hf_training_arguments import training_fields
from ftcore.config.reader import Setting
from ftcore.config.training_answers import ANSWERED, PASSED_ON
from ftcore.errors import Problem, quoted
from ftcore.utils.suggestions import near_names, question

TRANSFORMERS = "transformers"


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One option, as listed by ``ft options``.

    Args:
        name: the key in the file.
        owner: a group of the core, ``transformers``, ``selection``, or ``<kind> <name>`` of a component.
        type: shown to people.
        default: the value when nothing sets it.
        help: what it does.
    """

    name: str
    owner: str
    type: str
    default: Any
    help: str


def selection_options() -> dict[str, str]:
    """Option -> kind, for the options that select a component."""
    return {kind.option: kind.kind for kind in KINDS if kind.option}


def owners(plugins: Plugins) -> dict[str, type[OptionGroup]]:
    """Owner -> its options: the core's groups, then every component that has any."""
    found: dict[str, type[OptionGroup]] = dict(GROUPS)
    for offer in plugins.offers:
        if offer.component.Options.model_fields:
            found[owner_of(offer.component.kind, offer.component.name)] = offer.component.Options
    return found


def owner_of(kind: str, name: str) -> str:
    """A component's name as an owner, such as ``method lora``."""
    return f"{kind.replace('_', ' ')} {name}"


def list_options(plugins: Plugins) -> list[OptionInfo]:
    """Every option that a file may hold, in the order: selection, core, components, transformers."""
    listed = [
        OptionInfo(option, "selection", f"name of a {kind.replace('_', ' ')}", None, f"Which {kind.replace('_', ' ')}.")
        for option, kind in selection_options().items()
    ]
    taken = set(selection_options())
    for owner, group in owners(plugins).items():
        listed += [option_info(name, owner, info) for name, info in group.model_fields.items()]
        taken |= set(group.model_fields)
    for name, known in training_fields().items():
        if name not in taken and name in PASSED_ON:
            listed.append(OptionInfo(name, TRANSFORMERS, " or ".join(known.types), known.default, known.help))
    return listed


def option_info(name: str, owner: str, info: FieldInfo) -> OptionInfo:
    """One field of a group, as ``ft options`` lists it."""
    return OptionInfo(
        name, owner, type_name(info.annotation), info.get_default(call_default_factory=True), info.description or ""
    )


def type_name(annotation: Any) -> str:
    """An annotation in words: ``int``, ``'no' or 'steps'``, ``list of names``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return type_name(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return " or ".join(
            str(value).lower() if isinstance(value, bool) else str(value) for value in typing.get_args(annotation)
        )
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(part) for part in typing.get_args(annotation) if part is not type(None))
    if origin is tuple or annotation is tuple:
        return "names"
    return getattr(annotation, "__name__", str(annotation))


@dataclass
class Binding:
    """The result of binding: values by owner, ignored settings and problems."""

    values: dict[str, dict[str, Setting]] = field(default_factory=dict)
    """Active owner -> option -> setting."""
    ignored: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def assign(settings: Iterable[Setting], active: Mapping[str, type[OptionGroup]], plugins: Plugins) -> Binding:
    """Assigns each setting to the active owner of its name.

    Args:
        settings: what the user wrote, without the options that select components.
        active: owner -> options, of the core's groups and of this run's components.
        plugins: they also name the owners that this run does not use.
    """
    binding = Binding({owner: {} for owner in (*active, TRANSFORMERS)})
    every = owners(plugins)
    foreign = foreign_options(plugins)
    for setting in settings:
        name = setting.name
        mine = [owner for owner, group in active.items() if name in group.model_fields]
        others = [owner for owner, group in every.items() if name in group.model_fields]
        if len(mine) > 1:
            binding.problems.append(
                Problem(
                    f"{name} is an option of {' and of '.join(mine)}",
                    setting.where,
                    "disable one of the plugins with FT_DISABLE_PLUGINS",
                )
            )
        elif mine:
            binding.values[mine[0]][name] = setting
        elif others:
            binding.ignored.append(f"{setting.where}: ignored: {name} is an option of {_join(others)}, not used here")
        else:
            _assign_rest(setting, binding, foreign, [*every.values()])
    return binding


def _assign_rest(
    setting: Setting, binding: Binding, foreign: Mapping[str, ForeignOption], groups: list[type[OptionGroup]]
) -> None:
    name = setting.name
    known = training_fields().get(name)
    if known:
        if setting.value is not None and (wrong := known.check(setting.value)):
            binding.problems.append(Problem(f"{name}: {wrong}", setting.where))
        elif name in ANSWERED:
            _answer_field(setting, ANSWERED[name], known.default, binding)
        else:
            binding.values[TRANSFORMERS][name] = setting
    elif name in foreign:
        _answer_foreign(setting, foreign[name], binding)
    else:
        ours = [*selection_options(), *(field for group in groups for field in group.model_fields)]
        names = [*ours, *(field for field in training_fields() if field in PASSED_ON)]
        binding.problems.append(Problem(f"unknown option {quoted(name)}", setting.where, _near(name, names)))


def _answer_foreign(setting: Setting, option: ForeignOption, binding: Binding) -> None:
    name, value, where = setting.name, setting.value, setting.where
    if option.takes(value):
        binding.ignored.append(f"{where}: ignored: {name}: {option.advice or 'it has no effect'}")
    else:
        binding.problems.append(Problem(f"{name} is known but not supported", where, option.hint))


def _answer_field(setting: Setting, option: ForeignOption, default: Any, binding: Binding) -> None:
    """Reports what ft does instead; a field at its default value asks for nothing."""
    name, value, where = setting.name, setting.value, setting.where
    if value in (None, default):
        binding.ignored.append(f"{where}: ignored: {name} has its default value and no effect")
    elif option.takes(value):
        binding.ignored.append(f"{where}: {name}: {option.advice}")
    else:
        message = f"{name}: {quoted(value)} is not supported"
        binding.problems.append(Problem(message, where, option.hint))


def _near(name: str, names: list[str]) -> str:
    known = sorted(set(names))
    longer = [other for other in known if other.startswith(f"{name}_")][:3]  # model: model_name_or_path, not ref_model
    # 0.6: among 400 names some share half of their letters with any word
    return question(longer or near_names(name, known, cutoff=0.6)) or "ft options lists all options"


def _join(owners_: list[str]) -> str:
    head = owners_[:3]
    return " and ".join(head) + (f" and {len(owners_) - 3} more" if len(owners_) > 3 else "")


def foreign_options(plugins: Plugins) -> dict[str, ForeignOption]:
    """Name -> answer, of all plugins; the first plugin wins, since answers are only advice."""
    found: dict[str, ForeignOption] = {name: option for name, option in ANSWERED.items() if option.means}
    for answers in plugins.hook.ft_foreign_options():
        for name, option in answers.items():
            found.setdefault(name, option)
    return found


def rename(settings: Mapping[str, Setting], plugins: Plugins) -> tuple[dict[str, Setting], list[Problem]]:
    """Settings under their current names. An old name and its new name together are an error.

    A value that corresponds to another option becomes that option. It is an error if that option has another value.
    """
    renamed: dict[str, Setting] = {}
    problems: list[Problem] = []
    foreign = foreign_options(plugins)
    for setting in settings.values():
        option = foreign.get(setting.name)
        if option and (meant := _meant(setting, option)) is not None:
            there = settings.get(meant.name)
            if there is not None and there.value not in (None, meant.value):
                means = f"{setting.name}: {setting.value} means {meant.name}: {meant.value}"
                message = f"{means}, but {meant.name} has another value"
                problems.append(Problem(message, setting.where, f"keep one, {setting.name} or {meant.name}"))
            renamed[meant.name] = meant if there is None or there.value is None else there
            continue
        name = option.same_as if option and option.same_as else setting.name
        if name != setting.name and name in settings and settings[name].value is not None:
            if setting.value is not None:
                problems.append(
                    Problem(
                        f"{setting.name} is the old name of {name}, which is set too", setting.where, f"keep {name}"
                    )
                )
            continue
        if name not in renamed or renamed[name].value is None:
            renamed[name] = Setting(name, setting.value, setting.where)
    return renamed, problems


def _meant(setting: Setting, option: ForeignOption) -> Setting | None:
    """ft's own setting for a value of another tool's option, if there is one."""
    hashable = isinstance(setting.value, str | bool | int | float)
    if not hashable or setting.value not in option.means:
        return None
    name, value = option.means[setting.value]
    return Setting(name, value, setting.where)


def bind(
    owner: str, group: type[OptionGroup], settings: Mapping[str, Setting]
) -> tuple[OptionGroup | None, list[Problem]]:
    """An owner's options with these settings, or all problems with them. A null keeps the default."""
    values = {name: setting.value for name, setting in settings.items() if setting.value is not None}
    problems = [
        Problem(
            f"{name}: expected {type_name(group.model_fields[name].annotation)}, found {str(value).lower()}",
            settings[name].where,
        )
        for name, value in values.items()
        if isinstance(value, bool) and not _takes_bool(group.model_fields[name].annotation)
    ]
    wrong = {problem.message.partition(":")[0] for problem in problems}
    try:
        options = group(**{name: value for name, value in values.items() if name not in wrong})
    except ValidationError as error:
        return None, problems + [_validation_problem(group, details, settings) for details in error.errors()]
    return (None if problems else options), problems


def _takes_bool(annotation: Any) -> bool:
    if annotation in (bool, Any):
        return True
    return any(_takes_bool(part) if not isinstance(part, bool) else True for part in typing.get_args(annotation))


def _validation_problem(group: type[BaseModel], details: Any, settings: Mapping[str, Setting]) -> Problem:
    name = str(details["loc"][0]) if details["loc"] else next(iter(settings))
    setting = settings[name]
    message = details["msg"][:1].lower() + details["msg"][1:]
    return Problem(f"{name}: {message}, found {quoted(setting.value)}", setting.where)


def bound_options(values: Mapping[str, OptionGroup], binding: Binding) -> dict[str, Bound]:
    """All options of the run, each with its owner and origin."""
    bound: dict[str, Bound] = {}
    for owner, group in values.items():
        written = binding.values.get(owner, {})
        for name in type(group).model_fields:
            setting = written.get(name)
            origin = setting.where if setting and setting.value is not None else "default"
            bound[name] = Bound(getattr(group, name), owner, origin)
    for name, setting in binding.values.get(TRANSFORMERS, {}).items():
        if setting.value is not None:
            bound[name] = Bound(setting.value, TRANSFORMERS, setting.where)
    return bound
