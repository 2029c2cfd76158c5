"""What all kinds of component share; `ftcore.api.components` offers it on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Harmless:
    """Why a run may resume from a checkpoint although an option has changed: the option changes no weight.

    Args:
        reason: one sentence.
        unless: of a plan: whether the option changes weights there after all.
    """

    reason: str
    unless: Callable[[Any], bool] | None = None

    def holds(self, plan: Any) -> bool:
        """Whether it is harmless in this plan."""
        return self.unless is None or not self.unless(plan)


def learns_from_answers(plan: Any) -> bool:
    """Whether the plan's stage may train on answers that it has generated."""
    return bool(plan.stage.component.learns_from_answers)


EVERY = "*"
"""In ``resume_harmless``: every option of the group."""
_CREDENTIAL = Harmless("a field without repr is a credential, and is written nowhere")


class OptionGroup(BaseModel):
    """Base of every owner's options: frozen, unknown keys forbidden, docstrings under the fields are the help.

    A resume compares every option with the checkpoint's, and refuses a change, unless `resume_harmless` names it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {}
    """Option, or `EVERY` -> why its change changes no weight. Classes above are asked too."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if unknown := set(cls.resume_harmless) - set(cls.model_fields) - {EVERY}:
            raise TypeError(f"{cls.__name__}.resume_harmless names no option of it: {', '.join(sorted(unknown))}")


def why_harmless(group: type[OptionGroup], name: str) -> Harmless | None:
    """What is declared of an option; None where its change refuses a resume."""
    if not group.model_fields[name].repr:
        return _CREDENTIAL
    declared = [vars(cls)["resume_harmless"] for cls in group.__mro__ if "resume_harmless" in vars(cls)]
    return next((one[key] for one in declared for key in (name, EVERY) if key in one), None)


@dataclass(frozen=True, kw_only=True)
class Component:
    """What all kinds share.

    Args:
        name: how a YAML file selects it; unique within its kind when it is used.
        summary: one line for ``ft plugins list``.
        aliases: further names that select it.
        default: whether it is used when the file names none of its kind.
        selected_by: options of its own that select it as well, where the file names none of its kind.
    """

    kind: ClassVar[str] = ""
    """The kind's name in the plan, in ``ft plugins list`` and in error messages."""
    option: ClassVar[str] = ""
    """The option by which a file selects one of this kind, such as ``stage``; empty where it is selected otherwise."""
    Options: ClassVar[type[OptionGroup]] = OptionGroup
    """The options that this component owns; the plan binds them and refuses what they refuse."""
    resume_harmless: ClassVar[Harmless | None] = None
    """Why another component of the kind, or another version, may resume from a checkpoint; None where it may not."""

    renamed: ClassVar[Mapping[str, str]] = {}
    """What a component of this kind had under other names before ftcore 0.2; one that still has them is refused."""

    name: str
    summary: str
    aliases: tuple[str, ...] = ()
    default: bool = False
    selected_by: tuple[str, ...] = ()

    def resolve(self, values: Mapping[str, Any]) -> str:
        """The name of the component that takes this one's place under these raw option values; usually itself."""
        return self.name

    def configured(self, options: OptionGroup) -> Self:
        """What the plan holds in this one's place once its options are bound; usually itself."""
        return self
