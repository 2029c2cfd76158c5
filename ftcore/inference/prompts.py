"""Reads prompts and conversations from JSONL files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ftcore.api.inference_types import Prompt
from ftcore.api.option_groups import GenerationOptions
from ftcore.api.samples import ROLES, Chat, Message, Place
from ftcore.data.formats.detection import row_problem
from ftcore.data.multimodal.media_files import PLACEHOLDERS, check_no_placeholder
from ftcore.errors import Problem, RowError, UsageError, quoted
from ftcore.inference.generation_options import override_options
from ftcore.utils.strict_json import RepeatedKeyError, loads

T = TypeVar("T")


def text_prompt(text: str, system: str | None = None) -> Prompt:
    """A user turn, with an optional system message before it."""
    head = (Message("system", system),) if system is not None else ()
    return Prompt((*head, Message("user", text)))


def read_prompts(file: Path, system: str | None) -> tuple[list[Mapping[str, Any]], list[Prompt]]:
    """Rows and their prompts.

    Args:
        file: JSON objects, one per line; empty lines are skipped.
        system: system message of rows without one.

    Raises:
        UsageError: with all bad lines.
    """
    rows, prompts, places = _read(file, lambda row: _prompt(row, system))
    return rows, [replace(prompt, place=place) for prompt, place in zip(prompts, places, strict=True)]


def read_conversations(file: Path) -> tuple[list[Mapping[str, Any]], list[Chat], list[str]]:
    """Rows ``{"messages": [...], "tools": [...]}``, their conversations and places, ``file:line``.

    The last turn of each conversation is the assistant's.

    Raises:
        UsageError: with all bad lines.
    """
    return _read(file, _conversation)


def _read(file: Path, convert: Callable[[Any], T]) -> tuple[list[Mapping[str, Any]], list[T], list[str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(Problem(f"{file} cannot be read: {error.strerror}", "--input")) from error
    except UnicodeDecodeError as error:
        raise UsageError(Problem(f"byte {error.start} is not UTF-8", str(file), "save the file as UTF-8")) from error
    rows: list[Mapping[str, Any]] = []
    found: list[T] = []
    places, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = loads(line)
            found.append(convert(row))
            rows.append(row)
            places.append(f"{file}:{number}")
        except RowError as error:
            problems.append(row_problem(Place(str(file), number, number), error))
        except (ValueError, RecursionError, _BadRowError) as error:
            reason = str(error) if isinstance(error, _BadRowError | RepeatedKeyError) else f"not JSON: {error}"
            problems.append(Problem(reason, f"{file}:{number}"))
    if problems:
        raise UsageError(problems)
    if not rows:
        raise UsageError(Problem("the file has no rows", str(file)))
    return rows, found, places


class _BadRowError(Exception):
    """The problem of a row."""


def _prompt(row: Any, system: str | None) -> Prompt:
    if not isinstance(row, dict):
        raise _BadRowError('a line must be an object, such as {"prompt": "..."}')
    if ("prompt" in row) == ("messages" in row):
        raise _BadRowError("a row needs either prompt or messages")
    given = row.get("system", system)
    settings, seed, tools = row.get("settings"), row.get("seed"), row.get("tools")
    for name, value, kind in (("system", given, str), ("settings", settings, dict), ("seed", seed, int)):
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise _BadRowError(f"{name} must be {kind.__name__}, not {quoted(value)}")
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise _BadRowError(f"seed must be a 64-bit integer, not {quoted(seed)}")
    tools = _objects(tools, "tools")
    try:
        override_options(GenerationOptions(), settings)
    except UsageError as error:
        raise _BadRowError("settings: " + "; ".join(map(str, error.problems))) from error
    if "prompt" in row:
        if not isinstance(row["prompt"], str):
            raise _BadRowError(f"prompt must be str, not {quoted(row['prompt'])}")
        messages = text_prompt(row["prompt"], given).messages
    else:
        messages = _messages(row["messages"], given)
    _check_no_media(row, messages)
    return Prompt(messages, tools, settings, seed)


def _conversation(row: Any) -> Chat:
    if not isinstance(row, dict) or "messages" not in row:
        raise _BadRowError('a line must be an object, such as {"messages": [...]}')
    messages = _turns(row["messages"])
    if messages[-1].role != "assistant":
        raise _BadRowError("the last turn is not the assistant's: there is nothing to score")
    _check_no_media(row, messages)
    return Chat(tuple(messages), _objects(row.get("tools"), "tools"))


def _check_no_media(row: Mapping[str, Any], messages: Sequence[Message]) -> None:
    """Raises an error for media that would not be read.

    Raises:
        RowError: the row has media files or placeholders.
    """
    for role in PLACEHOLDERS:
        for name in (role, role.removesuffix("s")):
            if row.get(name):
                reason = f"the row has {name}, and inference supports text only"
                raise RowError(reason, field=name, value=row[name], cure="remove such rows")
    try:
        check_no_placeholder(message.content for message in messages)
    except RowError as error:
        mere_text = f'if it is ordinary text, use --dataset with "columns": {{"{error.field}": ""}}'
        cure = f"remove the row or the placeholder; {mere_text}"
        raise RowError(error.reason, field=error.field, cure=cure) from error


def _messages(found: Any, system: str | None) -> tuple[Message, ...]:
    messages = _turns(found)
    if messages[-1].role == "assistant":
        raise _BadRowError("the last turn is the assistant's: there is nothing to answer")
    if system is not None and messages[0].role != "system":
        messages.insert(0, Message("system", system))
    return tuple(messages)


def _turns(found: Any) -> list[Message]:
    if not isinstance(found, list) or not found:
        raise _BadRowError("messages must be a list of turns")
    messages = []
    for place, turn in enumerate(found):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            raise _BadRowError(f"messages[{place}].role must be one of {', '.join(ROLES)}")
        content = "" if turn.get("content") is None else turn["content"]
        if not isinstance(content, str):
            raise _BadRowError(f"messages[{place}].content must be str, not {quoted(content)}")
        calls = _objects(turn.get("tool_calls"), f"messages[{place}].tool_calls")
        messages.append(Message(turn["role"], content, turn.get("reasoning_content"), calls))
    return messages


def _objects(found: Any, name: str) -> tuple[dict[str, Any], ...]:
    """Checks a list of objects; None is an empty list."""
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise _BadRowError(f"{name} must be a list of objects")
    return tuple(found)
