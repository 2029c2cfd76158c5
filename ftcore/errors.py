"""Exceptions for mistakes of users, shown as text without a traceback.

Any other exception is a mistake of ft and keeps its traceback. Messages are lower case without a full stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_MOST = 60
"""Maximum characters of a user's value in a message."""
_MESSAGE = 1000
_HINT = 4000
"""Maximum characters of a problem's message and hint; a hint may list all templates."""


def short(text: str, most: int = _MOST) -> str:
    """The text, cut to ``most`` characters."""
    return text if len(text) <= most else f"{text[:most]}..."


def quoted(value: object, most: int = _MOST) -> str:
    """A user's value for a message: its ``repr``, shortened."""
    if isinstance(value, str | bytes):
        value = value[: most + 1]
    return short(repr(value), most)


def listed(names: Iterable[object], most: int = 10, length: int = _MOST) -> str:
    """``a, b, c and 4 more``; ``none`` for an empty list.

    Args:
        names: the names to list.
        most: maximum number of names.
        length: maximum characters of each.
    """
    names = tuple(names)
    shown = ", ".join(short(str(name), length) for name in names[:most]) or "none"
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: the thing, the place, and what to write instead.

    Args:
        message: what is wrong, naming the thing, lower case, no full stop.
        where: the place, such as ``run.yaml:12``, ``data.jsonl:3`` or ``command line``; empty when there is none.
        hint: what exists or what to write; empty if the message is enough.
    """

    message: str
    where: str = ""
    hint: str = ""

    def __post_init__(self) -> None:
        for name, most in (("message", _MESSAGE), ("where", _MESSAGE), ("hint", _HINT)):
            object.__setattr__(self, name, short(getattr(self, name), most))

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}; {self.hint}" if self.hint else head


class FtError(Exception):
    """Base of all exceptions that are shown as text. ``exit_code`` is the exit status of ``ft``."""

    exit_code = 1


class UsageError(FtError):
    """The file, the data or the command line is wrong. Holds all problems, found before a model is loaded."""

    exit_code = 2

    def __init__(self, problems: Problem | str | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: Sequence[Problem] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RunError(FtError):
    """The run itself failed: out of memory, a non-finite loss, a full disk, a damaged checkpoint."""


class RowError(Exception):
    """A dataset row is invalid. The data layer adds the place and turns it into a `Problem`.

    Args:
        reason: what is wrong, such as ``role 'user' follows 'user'``; values in it are `quoted`.
        field: the column or path inside the row, such as ``messages[2].role``.
        value: the offending value; it is shortened when shown.
        cure: what to write instead.
    """

    def __init__(self, reason: str, *, field: str = "", value: object = None, cure: str = "") -> None:
        super().__init__(reason)
        self.reason, self.field, self.value, self.cure = reason, field, value, cure
