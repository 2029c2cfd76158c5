"""Reads answers, preferences, labels and media of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ft_plugins.formats.fields import items, kind_of, required, text
from ft_plugins.formats.turns import check_turns, read_turn
from ftcore.api.samples import Chat, Feedback, Message, Preference
from ftcore.data.multimodal.media_files import PLACEHOLDERS, as_words
from ftcore.errors import RowError

MEDIA = {"images": "images", "videos": "videos", "audios": "audios"}
"""Media roles and their columns; ``image``, ``video`` and ``audio`` (LLaVA's names) are read as well."""
BESIDE = {
    **MEDIA,
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "kto_tag",
}
"""Roles of all formats with prompts."""

Row = Mapping[str, Any]
Names = Mapping[str, str]


def preference(prompt: Chat, row: Row, columns: Names, tags: Names) -> Preference:
    """Builds a preference from the prompt and the answers in ``chosen`` and ``rejected``.

    An answer is a string, a turn, a list of one turn, or a whole conversation that starts with the prompt. An empty
    prompt is taken from that conversation.

    Raises:
        RowError: an answer is missing or empty, or the prompts of the conversations differ.
    """
    turns, found = prompt.messages, []
    for role in ("chosen", "rejected"):
        column = columns[role]
        before, answer = _answer(required(row, column, f"write the answer in {column}"), column, tags)
        if before and turns and before != turns:
            other = columns["chosen"] if role == "rejected" and not prompt.messages else "the prompt"
            cure = "write the same turns before the last one in both columns"
            raise RowError(f"{column} and {other} have different turns before the answer", field=column, cure=cure)
        turns = turns or before
        found.append(answer)
    if not turns or turns[-1].role not in ("user", "tool"):
        reason = f"the prompt ends with {turns[-1].role!r}" if turns else "the row has no prompt"
        cure = f"end it with the turn that {columns['chosen']} and {columns['rejected']} answer"
        raise RowError(reason, field="prompt", cure=cure)
    return Preference(Chat(turns, prompt.tools, prompt.images, prompt.videos), *found)


def feedback(chat: Chat, row: Row, columns: Names) -> Feedback:
    """Builds feedback from the conversation and the label of its last answer.

    Raises:
        RowError: the label is missing or not a boolean.
    """
    column = columns["kto_tag"]
    value = required(row, column, "write true for a good answer and false for a bad one")
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):  # CSV has no booleans
        value = value.strip().lower() == "true"
    if not isinstance(value, bool):
        cure = "write true for a good answer and false for a bad one"
        raise RowError(f"{column} is {kind_of(value)}, not a boolean", field=column, value=value, cure=cure)
    return Feedback(chat, value)


def answer_text(row: Row, column: str) -> str:
    """The answer in a column.

    Raises:
        RowError: the answer is missing, not a string, or empty.
    """
    cure = f"write the answer in {column}, or remove the row"
    found = text(required(row, column, cure), column)
    if not found.strip():
        raise RowError(f"{column} is empty: there is nothing to train on", field=column, value=found, cure=cure)
    return found


def media(row: Row, columns: Names, messages: Sequence[Message] = ()) -> dict[str, tuple[str, ...]]:
    """The row's ``images`` and ``videos``, as `Chat` takes them.

    Raises:
        RowError: a value is not a path, placeholders have no files, or the row has audio.
    """
    found = {}
    for role, placeholder in PLACEHOLDERS.items():
        column = _media_column(row, columns, role)
        value = row.get(column) if column else None
        if value is None or value == "":
            continue
        if role == "audios":
            if value:
                cure = f"audio is not supported; remove such rows; {as_words(role)}"
                raise RowError(f"the row has {column}", field=column, value=value, cure=cure)
            continue
        paths = [value] if isinstance(value, str) else items(value, column)
        found[role] = tuple(text(path, f"{column}[{number}]") for number, path in enumerate(paths))
        if not paths and any(placeholder in message.content for message in messages):
            cure = "add the file, or remove the placeholder"
            raise RowError(f"{column} is empty, and the messages have {placeholder}", field=column, cure=cure)
    return found


def no_media(row: Row, columns: Names) -> None:
    """Raises an error for media of plain text.

    Raises:
        RowError: the row has media.
    """
    for role, files in media(row, columns).items():
        if files:
            cure = f"remove such rows; {as_words(role)}"
            raise RowError(f"the row has {role}, and this run reads plain text", field=role, value=files, cure=cure)


def _media_column(row: Row, columns: Names, role: str) -> str:
    """The column of a role; by default the singular or plural name, whichever the row has."""
    column, single = columns[role], role.removesuffix("s")
    if column != role or single in columns.values() or row.get(single) in (None, "", [], ()):
        return column
    if row.get(column) in (None, "", [], ()):
        return single
    cure = f'name the column to read: "columns": {{"{role}": ...}} in dataset_info.json'
    raise RowError(f"the row has {column} and {single}", field=column, cure=cure)


def _answer(value: object, column: str, tags: Names) -> tuple[tuple[Message, ...], Message]:
    """The turns before the answer, where the column holds the whole conversation, and the answer."""
    if isinstance(value, str):
        return (), Message("assistant", _not_empty(value, column))
    if isinstance(value, Mapping):
        return (), _of_assistant(read_turn(value, column, tags), column)
    if not isinstance(value, list | tuple):
        text(value, column)
    turns = [read_turn(turn, f"{column}[{number}]", tags) for number, turn in enumerate(items(value, column))]
    if len(turns) > 1:
        check_turns(turns, column, tags)
    if not turns:
        raise RowError(f"{column} has no turns", field=column, cure="write the answer")
    return tuple(turns[:-1]), _of_assistant(turns[-1], column)


def _of_assistant(message: Message, column: str) -> Message:
    if message.role == "assistant":
        return message
    cure = "its last turn must be the assistant's"
    raise RowError(f"{column} ends with {message.role!r}", field=column, value=message.role, cure=cure)


def _not_empty(value: str, column: str) -> str:
    if value.strip():
        return value
    cure = "write the answer, or remove the row"
    raise RowError(f"{column} is empty: there is nothing to train on", field=column, value=value, cure=cure)
