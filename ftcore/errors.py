"""What a user may do wrong, as one family of exceptions that are shown as text.

Anything else that is raised is our mistake and keeps its traceback.
Messages are lower case and have no full stop, unless there are several sentences (tox, docs/development.rst).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_MOST = 60
"""Characters of a user's value that a message quotes."""
_MESSAGE = 1000
_HINT = 4000
"""Characters of a problem's message and hint, which may list all templates: whoever wrote it, it can be read."""


def short(text: str, most: int = _MOST) -> str:
    """The text, or as much of its beginning."""
    return text if len(text) <= most else f"{text[:most]}..."


def quoted(value: object, most: int = _MOST) -> str:
    """A user's value in a message: Python's notation, shortened, however long it is."""
    if isinstance(value, str | bytes):
        value = value[: most + 1]
    return short(repr(value), most)


def listed(names: Iterable[object], most: int = 10, length: int = _MOST) -> str:
    """``a, b, c and 4 more``; ``none`` where there are none.

    Args:
        names: what is listed.
        most: at most so many.
        length: characters of each, at most.
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
        hint: what exists or what to write; empty when the message says it all.
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
    """The one base of what is shown as text. ``exit_code`` is the status that ``ft`` ends with."""

    exit_code = 1


class UsageError(FtError):
    """The file, the data or the command line is wrong: every problem at once, before anything heavy loads."""

    exit_code = 2

    def __init__(self, problems: Problem | str | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: Sequence[Problem] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RunError(FtError):
    """The run itself failed: out of memory, a loss that is not a number, a full disk, a damaged checkpoint."""


class RowError(Exception):
    """A dataset row that cannot be read. The data layer adds the place and turns it into a `Problem`.

    Args:
        reason: what is wrong, such as ``role 'user' follows 'user'``; values in it are `quoted`.
        field: the column or path inside the row, such as ``messages[2].role``.
        value: the offending value; it is shortened when shown.
        cure: what to write instead.
    """

    def __init__(self, reason: str, *, field: str = "", value: object = None, cure: str = "") -> None:
        super().__init__(reason)
        self.reason, self.field, self.value, self.cure = reason, field, value, cure
