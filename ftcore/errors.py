"""What a user may do wrong, as one family of exceptions that are shown as text.

Anything else that is raised is our mistake and keeps its traceback.
Messages are lower case and have no full stop, unless there are several sentences (tox, docs/development.rst).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
        reason: what is wrong, such as ``role 'user' follows 'user'``.
        field: the column or path inside the row, such as ``messages[2].role``.
        value: the offending value; it is shortened when shown.
        cure: what to write instead.
    """

    def __init__(self, reason: str, *, field: str = "", value: object = None, cure: str = "") -> None:
        super().__init__(reason)
        self.reason, self.field, self.value, self.cure = reason, field, value, cure
