"""Which kind of sample a dataset's rows are read as: what the row holds, its description, and what the stage eats.

A row often holds several things: a preference is also a prompt, and a conversation beside ``chosen`` and ``rejected``
is both. The stage's first kind that the dataset has is read; a dataset that has none of them is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftcore.api.components import DatasetFormat
from ftcore.api.dataset_spec import DatasetSpec
from ftcore.api.samples import Chat, Feedback, Preference, Sample, Text
from ftcore.data.multimodal.media_files import holds_media
from ftcore.data.preprocessing.questions import as_question
from ftcore.data.sources.dataset_info import KEY_TAGS
from ftcore.errors import RowError

Row = Mapping[str, Any]

NAMES = {
    "Text": "texts",
    "Chat": "conversations that end with an answer",
    "Preference": "preferences (chosen and rejected)",
    "Feedback": "answers with a mark (kto_tag: true or false)",
    "Prompt": "prompts",
}
"""Kind -> what such rows are called. ``Prompt`` is a `Chat` that ends before the answer."""
QUESTIONS = {
    "Question": "conversations, with or without the last answer",
    "AnyQuestion": "prompts, with or without an answer",
}
"""The same of rows that are asked (see `ftcore.data.preprocessing.questions`): a `Chat` that may lack its answer, or
any prompt."""
_CLASSES: Mapping[str, type] = {"Text": Text, "Chat": Chat, "Preference": Preference, "Feedback": Feedback}
_APART = "write such rows into a dataset of their own"
_SPECIAL = ("response", "chosen", "rejected", "kto_tag")
_OF_KIND = {
    "Chat": ("response",),
    "Preference": ("chosen", "rejected"),
    "Feedback": ("response", "kto_tag"),
    "Question": ("response",),
    "AnyQuestion": ("response", "chosen", "rejected"),
}
MARKS = ("kto_tag", "label")
"""Columns that hold the mark of an answer unless the description names one; ``label`` only where it is a boolean."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a dataset's rows are read.

    Args:
        format: the dataset's format.
        kind: what becomes of a row, a key of `NAMES`.
        columns: role -> column, for the format.
        tags: likewise.
    """

    format: DatasetFormat
    kind: str
    columns: Mapping[str, str]
    tags: Mapping[str, str]

    def read(self, row: Row) -> Sample:
        """The row as a sample of this kind.

        Raises:
            RowError: with the field, its value, the reason and the cure.
        """
        row, columns = _named(row), self.columns
        if self.kind in QUESTIONS:
            row, columns = as_question(row, columns, self.tags)
        return _as_kind(self.format.read(row, columns, self.tags), self.kind)


def readings(spec: DatasetSpec, chosen: DatasetFormat, row: Row, *, questions: bool = False) -> Iterator[Reading]:
    """Every way in which this format reads the dataset, judged by a row of it; with ``questions`` as these too."""
    row = _named(row)
    columns = named_once(chosen.columns, spec.columns)
    columns["kto_tag"] = mark_column(spec, row)
    tags = {
        **named_once(_some(chosen.tags, keys=False), _some(spec.tags, keys=False)),
        **named_once(_some(chosen.tags, keys=True), _some(spec.tags, keys=True)),
    }

    def reading(kind: str) -> Reading:
        wanted = _OF_KIND.get(kind, ())
        if kind == "AnyQuestion" and spec.ranking:
            wanted = _OF_KIND["Preference"]
        kept = {role: column for role, column in columns.items() if role not in _SPECIAL or role in wanted}
        return Reading(format=chosen, kind=kind, columns=kept, tags=tags)

    made = chosen.samples or _made_of(reading("Chat"), row)
    kinds = list(_kinds(spec, made, columns, row, lambda: _holds_answer(reading("Chat"), row)))
    yield from map(reading, kinds)
    if questions and ("Chat" in kinds or kinds == ["Prompt"]):
        yield reading("Question")
    if questions and "Prompt" in kinds:
        yield reading("AnyQuestion")


def _kinds(
    spec: DatasetSpec, made: Sequence[str], columns: Mapping[str, str], row: Row, ends_with_answer: Callable[[], bool]
) -> Iterator[str]:
    if "Text" in made:
        yield "Text"
    if "Chat" not in made:
        yield from (kind for kind in made if kind != "Text")
        return
    pair = spec.ranking or all(columns.get(role) in row for role in ("chosen", "rejected"))
    answered = columns["response"] in row if "response" in columns else not pair or ends_with_answer()
    if pair and "Preference" in made:
        yield "Preference"
    if columns["kto_tag"] and "Feedback" in made:
        yield "Feedback"
    elif answered and not spec.ranking:
        yield "Chat"
    yield "Prompt"


def named_once(default: Mapping[str, str], told: Mapping[str, str]) -> dict[str, str]:
    """Role -> column. A column that was told for one role is no other's by default: that role then has none."""
    taken = set(told.values())
    return {role: "" if column in taken else column for role, column in default.items()} | dict(told)


def _named(row: Row) -> Row:
    """The row without a column that has no name: "" stands for roles that have no column."""
    return {column: value for column, value in row.items() if column} if "" in row else row


def _some(tags: Mapping[str, str], *, keys: bool) -> dict[str, str]:
    """Of the tags those that name keys, or those that name roles: one word may be both."""
    return {tag: name for tag, name in tags.items() if (tag in KEY_TAGS) == keys}


def mark_column(spec: DatasetSpec, row: Row) -> str:
    """The column with the mark of an answer; empty where there is none."""
    if "kto_tag" in spec.columns:
        return spec.columns["kto_tag"]
    first, second = MARKS
    taken = spec.columns.values()
    value = row.get(second) if second not in taken else None
    boolean = isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false"))
    return first if first in row and first not in taken else second if boolean else ""


def only_prompts(found: Sequence[Reading]) -> bool:
    """Whether a dataset holds prompts without anything that answers them."""
    return [reading.kind for reading in found] == ["Prompt"]


def as_text(reading: Reading) -> Reading:
    """Prompts without answers read as texts: how users' files describe raw text to other tools."""
    return Reading(format=reading.format, kind="Text", columns=reading.columns, tags=reading.tags)


def _made_of(reading: Reading, row: Row) -> tuple[str, ...]:
    """What a format that does not say so makes of a row."""
    if set(reading.format.columns) & set(_SPECIAL):
        return tuple(_CLASSES)
    try:
        return (type(reading.format.read(row, reading.columns, reading.tags)).__name__,)
    except RowError:
        return ("Chat",)


def _holds_answer(reading: Reading, row: Row) -> bool:
    try:
        sample = reading.format.read(row, reading.columns, reading.tags)
    except RowError:
        return False
    return isinstance(sample, Chat) and sample.messages[-1].role == "assistant"


def _as_kind(sample: Sample, kind: str) -> Sample:
    if kind == "Prompt":
        return _prompt(sample)
    if kind in QUESTIONS and isinstance(sample, Chat | Preference):
        return sample
    if kind == "Text" and isinstance(sample, Chat):
        return Text(_only_turn(sample))
    if kind in QUESTIONS or not isinstance(sample, _CLASSES[kind]):
        found = "Prompt" if isinstance(sample, Chat) and kind != "Chat" else type(sample).__name__
        reason = f"the row holds {NAMES[found]}, where the first rows hold {NAMES[kind]}"
        raise RowError(reason, field="the row", cure=_APART)
    chat = sample.chat if isinstance(sample, Feedback) else sample
    if isinstance(chat, Chat) and chat.messages[-1].role != "assistant":
        reason = f"the conversation ends with {chat.messages[-1].role!r}"
        raise RowError(reason, cure="add the answer, or remove the last turn")
    return sample


def _prompt(sample: Sample) -> Chat:
    if isinstance(sample, Preference):
        return sample.prompt
    chat = sample.chat if isinstance(sample, Feedback) else sample
    if not isinstance(chat, Chat):
        reason = f"the row holds {NAMES[type(sample).__name__]}, where prompts are needed"
        raise RowError(reason, field="the row", cure=_APART)
    if chat.messages[-1].role != "assistant":
        return chat
    return Chat(chat.messages[:-1], chat.tools, chat.images, chat.videos)


def _only_turn(chat: Chat) -> str:
    if len(chat.messages) != 1:
        raise RowError(f"a text is needed, and the row has {len(chat.messages)} turns", field="the row", cure=_APART)
    if media := holds_media(chat):
        reason = f"the row has {media}, and a text has none"
        raise RowError(reason, field="the row", cure="remove such rows, or train conversations on them")
    return chat.messages[0].content
