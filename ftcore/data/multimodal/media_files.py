"""Locates image and video files of samples, and checks that each placeholder has a file."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.api.samples import Chat, Feedback, Message, Preference, Sample, Text
from ftcore.errors import RowError, quoted
from ftcore.utils.cache_dir import is_there

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

PLACEHOLDERS = {"images": "<image>", "videos": "<video>", "audios": "<audio>"}
"""Placeholders of images, videos and audio in messages."""


@dataclass(frozen=True, slots=True)
class MediaFolders:
    """Folders that are searched for media files, in this order.

    Args:
        folders: ``media_dir`` and ``dataset_dir``.
        no_column: roles without a column in the dataset's description; their placeholders are text.
    """

    folders: tuple[Path, ...]
    no_column: frozenset[str] = frozenset()

    @classmethod
    def of(cls, plan: Plan, columns: Mapping[str, str] | None = None) -> MediaFolders:
        """``media_dir``, if set, then ``dataset_dir``; ``columns`` are those of the dataset's description."""
        named = (plan.data.media_dir, plan.data.dataset_dir)
        folders = tuple(Path(name).expanduser() for name in named if name)
        return cls(folders, frozenset(role for role, column in (columns or {}).items() if not column))

    def resolved(self, sample: Sample) -> Sample:
        """The sample with resolved paths of its files.

        Raises:
            RowError: a file is missing, or the numbers of files and placeholders differ.
        """
        if isinstance(sample, Preference):
            prompt = self._chat(sample.prompt, (sample.chosen, sample.rejected))
            return sample if prompt is sample.prompt else replace(sample, prompt=prompt)
        if isinstance(sample, Feedback):
            chat = self._chat(sample.chat)
            return sample if chat is sample.chat else replace(sample, chat=chat)
        if isinstance(sample, Text):
            check_no_placeholder([sample.text], self.no_column)
            return sample
        return self._chat(sample)

    def _chat(self, chat: Chat, answers: Sequence[Message] = ()) -> Chat:
        given = {column: files for column, files in (("images", chat.images), ("videos", chat.videos)) if files}
        check_no_placeholder(_texts((*chat.messages, *answers)), self.no_column | given.keys())
        if not given:
            return chat
        for column, files in given.items():
            placeholder = PLACEHOLDERS[column]
            count = sum(message.content.count(placeholder) for message in chat.messages)
            if count != len(files):
                listed = f"{len(files)} file{'s' * (len(files) != 1)}"
                reason = f"{column} lists {listed}, and the messages contain {placeholder} {count} times"
                raise RowError(reason, field=column, cure=f"write {placeholder} once for each file, at its position")
            if any(placeholder in answer.content for answer in answers):
                raise RowError(f"an answer contains {placeholder}", field=column, cure="move it to the prompt")
        return replace(
            chat,
            images=tuple(self._path(name, f"images[{i}]") for i, name in enumerate(chat.images)),
            videos=tuple(self._path(name, f"videos[{i}]") for i, name in enumerate(chat.videos)),
        )

    def _path(self, name: str, field: str) -> str:
        for folder in self.folders:
            path = folder / name
            if is_there(path) and path.is_file():
                return str(path)
        looked = ", ".join(map(str, self.folders))
        reason = f"file {quoted(name, 200)} does not exist"
        raise RowError(reason, field=field, cure=f"searched folders: {looked}; set media_dir to the folder of the file")


def check_no_placeholder(texts: Iterable[str], without: Container[str] = ()) -> None:
    """Raises an error for placeholders without a file: the model would read the placeholder as text.

    Args:
        texts: texts of the sample.
        without: roles whose placeholders are ignored.

    Raises:
        RowError: with the role as its field.
    """
    wanted = [(role, placeholder) for role, placeholder in PLACEHOLDERS.items() if role not in without]
    for text in texts:
        for role, placeholder in wanted:
            if placeholder in text:
                reason = f"the text has {placeholder}, and the row has no {role}"
                raise RowError(reason, field=role, cure=f"{_GIVE[role]}; {as_words(role)}")


_GIVE = {
    "images": "write the file in images, or remove <image>",
    "videos": "write the file in videos, or remove <video>",
    "audios": "audio is not supported; remove the row, or <audio>",
}


def as_words(role: str) -> str:
    """Hint: how to declare that the placeholder of a role is ordinary text."""
    return f'if it is ordinary text, write "columns": {{"{role}": ""}} for this dataset in dataset_info.json'


def _texts(messages: Iterable[Message]) -> Iterator[str]:
    for message in messages:
        yield message.content
        if message.reasoning:
            yield message.reasoning


def holds_media(sample: Sample) -> str:
    """The media of a sample, such as ``2 images``; empty without media."""
    if isinstance(sample, Preference):
        return holds_media(sample.prompt)
    if isinstance(sample, Feedback):
        return holds_media(sample.chat)
    if not isinstance(sample, Chat):
        return ""
    counts = (("image", len(sample.images)), ("video", len(sample.videos)))
    return " and ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts if count)
