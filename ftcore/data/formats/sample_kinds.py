"""Selects the sample kind of a dataset from its rows, its description and the stage.

A row often fits several kinds: a preference is also a prompt, and a conversation with ``chosen`` and ``rejected`` is
both. The first kind of the stage that the dataset has is read. A dataset with none of them is an error.
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
    "Feedback": "labelled answers (kto_tag: true or false)",
    "Prompt": "prompts",
}
"""Kind -> its name in messages. ``Prompt`` is a `Chat` that ends before the answer."""
QUESTIONS = {
    "Question": "conversations, with or without the last answer",
    "AnyQuestion": "prompts, with or without an answer",
}
"""Names of kinds for prediction (see `ftcore.data.preprocessing.questions`): a `Chat` with an optional answer, or any
prompt."""
_CLASSES: Mapping[str, type] = {"Text": Text, "Chat": Chat, "Preference": Preference, "Feedback": Feedback}
_MOVE_ROWS = "move such rows to a separate dataset"
_SPECIAL = ("response", "chosen", "rejected", "kto_tag")
_OF_KIND = {
    "Chat": ("response",),
    "Preference": ("chosen", "rejected"),
    "Feedback": ("response", "kto_tag"),
    "Question": ("response",),
    "AnyQuestion": ("response", "chosen", "rejected"),
}
MARKS = ("kto_tag", "label")
"""Default columns of an answer's label; ``label`` is used only if it is a boolean."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a dataset's rows are read.

    Args:
        format: the format of the dataset.
        kind: the sample kind, a key of `NAMES`.
        columns: role -> column.
        tags: tag -> name.
    """

    format: DatasetFormat
    kind: str
    columns: Mapping[str, str]
    tags: Mapping[str, str]

    def read(self, row: Row) -> Sample:
        """The row as a sample of this kind.

        Raises:
            RowError: with field, value, reason and fix.
        """
        row, columns = _named(row), self.columns
        if self.kind in QUESTIONS:
            row, columns = as_question(row, columns, self.tags)
        return _as_kind(self.format.read(row, columns, self.tags), self.kind)


def readings(spec: DatasetSpec, chosen: DatasetFormat, row: Row, *, questions: bool = False) -> Iterator[Reading]:
    """Every kind that this format can read, judged by one row; with ``questions`` also the kinds for prediction."""
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

    sample_kinds = chosen.samples or _kinds_of_row(reading("Chat"), row)
    kinds = list(_kinds(spec, sample_kinds, columns, row, lambda: _holds_answer(reading("Chat"), row)))
    yield from map(reading, kinds)
    if questions and ("Chat" in kinds or kinds == ["Prompt"]):
        yield reading("Question")
    if questions and "Prompt" in kinds:
        yield reading("AnyQuestion")


def _kinds(
    spec: DatasetSpec,
    sample_kinds: Sequence[str],
    columns: Mapping[str, str],
    row: Row,
    ends_with_answer: Callable[[], bool],
) -> Iterator[str]:
    if "Text" in sample_kinds:
        yield "Text"
    if "Chat" not in sample_kinds:
        yield from (kind for kind in sample_kinds if kind != "Text")
        return
    pair = spec.ranking or all(columns.get(role) in row for role in ("chosen", "rejected"))
    answered = columns["response"] in row if "response" in columns else not pair or ends_with_answer()
    if pair and "Preference" in sample_kinds:
        yield "Preference"
    if columns["kto_tag"] and "Feedback" in sample_kinds:
        yield "Feedback"
    elif answered and not spec.ranking:
        yield "Chat"
    yield "Prompt"


def named_once(default: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Role -> column. A column that is assigned to a role is not the default of another role, which then has none."""
    taken = set(given.values())
    return {role: "" if column in taken else column for role, column in default.items()} | dict(given)


def _named(row: Row) -> Row:
    """The row without the column "": the name "" means that a role has no column."""
    return {column: value for column, value in row.items() if column} if "" in row else row


def _some(tags: Mapping[str, str], *, keys: bool) -> dict[str, str]:
    """The tags that name keys, or those that name roles; the two may share names."""
    return {tag: name for tag, name in tags.items() if (tag in KEY_TAGS) == keys}


def mark_column(spec: DatasetSpec, row: Row) -> str:
    """The column with the label of an answer; empty if there is none."""
    if "kto_tag" in spec.columns:
        return spec.columns["kto_tag"]
    first, second = MARKS
    taken = spec.columns.values()
    value = row.get(second) if second not in taken else None
    boolean = isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false"))
    return first if first in row and first not in taken else second if boolean else ""


def only_prompts(found: Sequence[Reading]) -> bool:
    """Whether a dataset has only prompts without answers."""
    return [reading.kind for reading in found] == ["Prompt"]


def as_text(reading: Reading) -> Reading:
    """Reads prompts without answers as texts: LLaMA-Factory describes raw text this way."""
    return Reading(format=reading.format, kind="Text", columns=reading.columns, tags=reading.tags)


def _kinds_of_row(reading: Reading, row: Row) -> tuple[str, ...]:
    """The sample kinds of a format that does not declare them."""
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
        reason = f"the row holds {NAMES[found]}; the first rows hold {NAMES[kind]}"
        raise RowError(reason, field="the row", cure=_MOVE_ROWS)
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
        reason = f"the row holds {NAMES[type(sample).__name__]}; prompts are needed"
        raise RowError(reason, field="the row", cure=_MOVE_ROWS)
    if chat.messages[-1].role != "assistant":
        return chat
    return Chat(chat.messages[:-1], chat.tools, chat.images, chat.videos)


def _only_turn(chat: Chat) -> str:
    if len(chat.messages) != 1:
        raise RowError(
            f"the row has {len(chat.messages)} turns, and this run reads plain text", field="the row", cure=_MOVE_ROWS
        )
    if media := holds_media(chat):
        reason = f"the row has {media}, and this run reads plain text"
        raise RowError(reason, field="the row", cure="remove such rows, or use a stage that trains on conversations")
    return chat.messages[0].content
