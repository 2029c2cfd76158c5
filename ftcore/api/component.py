"""What all kinds of component share; import it from `ftcore.api.components`."""

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
        unless: returns true for a plan in which the option does change weights.
    """

    reason: str
    unless: Callable[[Any], bool] | None = None

    def holds(self, plan: Any) -> bool:
        """Whether the option is harmless in this plan."""
        return self.unless is None or not self.unless(plan)


def learns_from_answers(plan: Any) -> bool:
    """Whether the plan's stage may train on answers that the model generates."""
    return bool(plan.stage.component.learns_from_answers)


EVERY = "*"
"""In ``resume_harmless``: every option of the group."""
_CREDENTIAL = Harmless("a field without repr is a credential, and is written nowhere")


class OptionGroup(BaseModel):
    """Base class for options: frozen, without unknown keys; docstrings under the fields are the help.

    A resume compares all options with those of the checkpoint and refuses a change unless `resume_harmless` allows it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {}
    """Option, or `EVERY` -> why a change of it changes no weight. Entries of base classes count too."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if unknown := set(cls.resume_harmless) - set(cls.model_fields) - {EVERY}:
            raise TypeError(
                f"{cls.__name__}.resume_harmless names options that it does not have: {', '.join(sorted(unknown))}"
            )


def why_harmless(group: type[OptionGroup], name: str) -> Harmless | None:
    """Why an option may change before a resume; None if it must not."""
    if not group.model_fields[name].repr:
        return _CREDENTIAL
    declared = [vars(cls)["resume_harmless"] for cls in group.__mro__ if "resume_harmless" in vars(cls)]
    return next((harmless[key] for harmless in declared for key in (name, EVERY) if key in harmless), None)


@dataclass(frozen=True, kw_only=True)
class Component:
    """Base class of all kinds.

    Args:
        name: its name in a training file; must be unique within its kind where it is used.
        summary: one line for ``ft plugins list``.
        aliases: further names that select it.
        default: whether it is used if the file selects none of its kind.
        selected_by: its own options that also select it, if the file selects none of its kind.
    """

    kind: ClassVar[str] = ""
    """The kind's name in the plan, in ``ft plugins list`` and in error messages."""
    option: ClassVar[str] = ""
    """The option that selects a component of this kind, such as ``stage``; empty if there is none."""
    Options: ClassVar[type[OptionGroup]] = OptionGroup
    """The component's own options, which the plan binds and validates."""
    resume_harmless: ClassVar[Harmless | None] = None
    """Why a run may resume with another component or version of this kind; None if it must not."""

    renamed: ClassVar[Mapping[str, str]] = {}
    """Names of attributes before ftcore 0.2 -> current names. A component with an earlier name is refused."""

    name: str
    summary: str
    aliases: tuple[str, ...] = ()
    default: bool = False
    selected_by: tuple[str, ...] = ()

    def resolve(self, values: Mapping[str, Any]) -> str:
        """The name of the component to use instead, given these raw option values; usually its own."""
        return self.name

    def configured(self, options: OptionGroup) -> Self:
        """The component that the plan holds after options are bound; usually itself."""
        return self
