"""What all kinds of component share; `ftcore.api.components` offers it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict


class OptionGroup(BaseModel):
    """Base of every owner's options: frozen, unknown keys forbidden, docstrings under the fields are the help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


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
