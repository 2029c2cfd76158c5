"""Options of other tools' files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ForeignOption:
    """An option of another tool's files that nothing here owns.

    Args:
        advice: what is done instead, or why it is refused.
        same_as: the option that it is another name of; its value is passed on.
        harmless: values, besides null, under which leaving it out changes nothing; None for every value.
        instead: options to write in its place where it is refused; each such file plans.
        means: value -> the option and the value that say the same; they are passed on.
    """

    advice: str = ""
    same_as: str = ""
    harmless: tuple[Any, ...] | None = ()
    instead: Mapping[str, Any] = field(default_factory=dict)
    means: Mapping[Any, tuple[str, Any]] = field(default_factory=dict)

    @property
    def hint(self) -> str:
        """For a message that refuses it."""
        written = ", ".join(f"{name}: {_shown(value)}" for name, value in self.instead.items())
        return "; ".join(part for part in (self.advice, f"write {written}" if written else "") if part) or "remove it"

    def takes(self, value: Any) -> bool:
        """Whether nothing is lost where it is left out. 0 and False are equal in Python, and two things in a file."""
        if self.harmless is None or value is None:
            return True
        same = (other for other in self.harmless if value == other)
        return any(isinstance(value, bool) is isinstance(other, bool) for other in same)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
