"""Rows for prediction and ``ft generate``: a prompt with an optional answer.

A missing, null or empty answer counts as none, and so does an empty last turn of the assistant. This is decided per
row. Training refuses rows without an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

Row = Mapping[str, Any]
Names = Mapping[str, str]

NO_ANSWER = "no answer: used for prediction, not for evaluation"
"""Reason for excluding a row without an answer from evaluation."""
_ANSWERS = ("response", "chosen", "rejected")


def predicts(plan: Plan) -> bool:
    """Whether the plan generates answers for its evaluation data, so that its rows need no answers."""
    return plan.training.do_predict and plan.stage.component.supports_prediction


def as_question(row: Row, columns: Names, tags: Names) -> tuple[Row, dict[str, str]]:
    """The row and the columns that its format reads as a prompt with an optional answer.

    Args:
        row: as it is.
        columns: role -> column, including the answer roles ``response``, ``chosen`` and ``rejected``.
        tags: names inside the columns.
    """
    if not _blank(row.get(columns.get("response", "")), tags) or _ends_with_answer(row, columns, tags):
        return row, _without(columns, "chosen", "rejected")
    if not any(_blank(row.get(columns.get(role, "")), tags) for role in ("chosen", "rejected")):
        return row, _without(columns, "response")
    return _unanswered(row, columns, tags), _without(columns, *_ANSWERS)


def _without(columns: Names, *roles: str) -> dict[str, str]:
    return {role: column for role, column in columns.items() if role not in roles}


def _turns(row: Row, columns: Names) -> tuple[str, Any]:
    """The column of turns, if the format has one, and its turns."""
    column = columns.get("messages", "")
    turns = row.get(column) if column else None
    return column, turns if isinstance(turns, list | tuple) else ()


def _ends_with_answer(row: Row, columns: Names, tags: Names) -> bool:
    _, turns = _turns(row, columns)
    return bool(turns) and _of_assistant(turns[-1], tags) and not _blank(turns[-1], tags)


def _unanswered(row: Row, columns: Names, tags: Names) -> Row:
    """The row without an empty last turn of the assistant."""
    column, turns = _turns(row, columns)
    return {**row, column: turns[:-1]} if turns and _of_assistant(turns[-1], tags) else row


def _of_assistant(turn: object, tags: Names) -> bool:
    roles = [tags.get("assistant_tag"), tags.get("function_tag")]
    return isinstance(turn, Mapping) and turn.get(tags.get("role_tag", "")) in roles


def _blank(answer: object, tags: Names) -> bool:
    """Whether an answer (a string, a turn, or a list of turns) is empty."""
    if isinstance(answer, Mapping):
        said = _blank(answer.get(tags.get("content_tag", "")), tags)
        return said and _of_assistant(answer, tags) and not answer.get("tool_calls")
    if isinstance(answer, list | tuple):
        return all(_blank(part, tags) for part in answer)
    return answer is None or (isinstance(answer, str) and not answer.strip())
