"""Images and videos beside conversations: where their files are, and that each has its placeholder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.errors import RowError
from ftcore.samples import Chat, Feedback, Message, Preference, Sample

if TYPE_CHECKING:
    from ftcore.plan import Plan

PLACEHOLDERS = {"images": "<image>", "videos": "<video>"}
"""What stands in the messages where an image or a video belongs."""


@dataclass(frozen=True, slots=True)
class MediaFolders:
    """Folders in which the media of rows are looked for, in this order."""

    folders: tuple[Path, ...]

    @classmethod
    def of(cls, plan: Plan) -> MediaFolders:
        """``media_dir``, where it is set, then ``dataset_dir``."""
        named = (plan.data.media_dir, plan.data.dataset_dir)
        return cls(tuple(Path(name).expanduser() for name in named if name))

    def resolved(self, sample: Sample) -> Sample:
        """The sample with the paths of its files, and as many of these as placeholders.

        Raises:
            RowError: a file is missing, or there are more or fewer of them than placeholders.
        """
        if isinstance(sample, Preference):
            prompt = self._chat(sample.prompt, (sample.chosen, sample.rejected))
            return sample if prompt is sample.prompt else replace(sample, prompt=prompt)
        if isinstance(sample, Feedback):
            chat = self._chat(sample.chat)
            return sample if chat is sample.chat else replace(sample, chat=chat)
        return self._chat(sample) if isinstance(sample, Chat) else sample

    def _chat(self, chat: Chat, answers: Sequence[Message] = ()) -> Chat:
        if not (chat.images or chat.videos):
            return chat
        for column, given in (("images", chat.images), ("videos", chat.videos)):
            placeholder = PLACEHOLDERS[column]
            count = sum(message.content.count(placeholder) for message in chat.messages)
            if given and count != len(given):
                reason = f"{column} has {len(given)}, and the messages have {placeholder} {count} times"
                raise RowError(reason, field=column, cure=f"write {placeholder} once where each of them belongs")
            if given and any(placeholder in answer.content for answer in answers):
                raise RowError(f"an answer holds {placeholder}", field=column, cure="write it into the prompt")
        return replace(
            chat,
            images=tuple(self._path(name, f"images[{i}]") for i, name in enumerate(chat.images)),
            videos=tuple(self._path(name, f"videos[{i}]") for i, name in enumerate(chat.videos)),
        )

    def _path(self, name: str, field: str) -> str:
        for folder in self.folders:
            path = folder / name
            if path.is_file():
                return str(path)
        looked = ", ".join(map(str, self.folders))
        reason = f"there is no file {name!r}"
        raise RowError(reason, field=field, cure=f"looked in {looked}; set media_dir to the folder that has it")


def holds_media(sample: Sample) -> str:
    """What a sample holds besides text, such as ``2 images``; empty when nothing."""
    if isinstance(sample, Preference):
        return holds_media(sample.prompt)
    if isinstance(sample, Feedback):
        return holds_media(sample.chat)
    if not isinstance(sample, Chat):
        return ""
    counts = (("image", len(sample.images)), ("video", len(sample.videos)))
    return " and ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts if count)
