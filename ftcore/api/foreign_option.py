"""Options of other fine-tuning tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ForeignOption:
    """An option of another tool that ft does not have.

    Args:
        advice: what ft does instead, or why the option is refused.
        same_as: ft's option with the same meaning; the value is passed to it.
        harmless: values, besides null, that may be ignored without effect; None for all values.
        instead: options to write instead if it is refused; they must make a valid plan.
        means: value -> ft's option and value with the same meaning.
    """

    advice: str = ""
    same_as: str = ""
    harmless: tuple[Any, ...] | None = ()
    instead: Mapping[str, Any] = field(default_factory=dict)
    means: Mapping[Any, tuple[str, Any]] = field(default_factory=dict)

    @property
    def hint(self) -> str:
        """The hint of the message that refuses the option."""
        written = ", ".join(f"{name}: {_shown(value)}" for name, value in self.instead.items())
        return "; ".join(part for part in (self.advice, f"write {written}" if written else "") if part) or "remove it"

    def takes(self, value: Any) -> bool:
        """Whether a value may be ignored without effect. Unlike Python, a file keeps 0 apart from false."""
        if self.harmless is None or value is None:
            return True
        same = (other for other in self.harmless if value == other)
        return any(isinstance(value, bool) is isinstance(other, bool) for other in same)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
