"""What the model says, in the text of a chat template without ``{% generation %}`` marks.

An answer begins where the prompt for it ends, and ends where the conversation up to it does. Templates that write a
conversation differently once it goes on (those that drop earlier thoughts, say) do not show it that way: there marks
around the contents tell which turn is where, and what stands around them is known from the prompt and from the ends of
turns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ftcore.data.chat_template.jinja_env import Compiled
from ftcore.data.chat_template.sentinels import AREA, Conversation, Sentinels
from ftcore.data.chat_template.turn_ends import TurnEnds, shared_start
from ftcore.errors import RowError

Bounds = tuple[int, int]
"""Start and end of what the model says in a turn."""


class Unmarked:
    """A template without marks.

    Args:
        template: it.
        controls: the tokenizer's special tokens.
        ends: how its turns end.
    """

    def __init__(self, template: Compiled, controls: Sequence[str], ends: TurnEnds) -> None:
        self._template, self._ends = template, ends
        self._endings = (*controls, *ends.every)
        self._variants: list[dict[str, Any]] = [{}]
        for name in ("enable_thinking", "thinking"):  # Qwen's and most, DeepSeek's
            if name in template.source:
                self._variants += [{name: False}, {name: True}]
        # a control token that somebody wrote stands behind a private-use character
        guard = f"(?<![{chr(AREA[0])}-{chr(AREA[-1])}])"
        found = "|".join(map(re.escape, (*ends.every, *ends.next))) or "(?!)"  # (?!) never matches
        self._turn_end = re.compile(f"{guard}(?:{found})")

    def bounds(
        self, conversation: Conversation, tools: Sequence[Mapping[str, Any]], text: str, numbers: Sequence[int]
    ) -> list[Bounds]:
        """Of each of the turns ``numbers`` what the model says.

        Raises:
            RowError: of one of them it cannot be told.
        """
        row = _Row(self._template, conversation, tools, text)
        found: list[Bounds] = []
        for number in numbers:
            # The last answer ends the conversation in most rows: then this is the text itself.
            after = text if number + 1 == len(conversation) else row.write(number + 1)
            start = self._start(row, number)
            up_to = start is not None and text.startswith(after) and start <= len(after)
            end = self._own_end(text, self._end(after)) if up_to else self._found_end(row, number, start)
            if start is None or end is None or end < start or (found and start < found[-1][1]):
                raise _hidden(number)
            found.append((start, end))
        return found

    def _end(self, text: str) -> int:
        """Where the model's turn ends at the end of the text: blanks after a control token are the template's."""
        cut = text.removesuffix(self._ends.trailer)
        for stripped in (cut.rstrip(), text.rstrip()):
            if stripped.endswith(self._endings):
                return len(stripped)
        return len(text)

    def _own_end(self, text: str, end: int) -> int:
        """The end of a turn that has a token of its own only where the conversation goes on (Apriel)."""
        if text[:end].endswith(self._endings):
            return end
        found = self._turn_end.match(text, end + len(text[end:]) - len(text[end:].lstrip()))
        return found.end() if found and found[0] in self._ends.history else end

    def _start(self, row: _Row, number: int) -> int | None:
        """Where the prompt for a turn ends; where it is not how the text begins, where the turn's header does.

        A row may have a thought where the prompt has none, or the other way round: then it is the prompt that the
        template writes for that.
        """
        prompts = []
        for more in self._variants:
            prompts.append(row.write(number, prompt=True, **more))
            if row.text.startswith(prompts[-1]):
                return len(prompts[-1])
        base = row.write(number)
        headers = [prompt.removeprefix(base) for prompt in prompts if prompt.startswith(base)]
        sure = self._whole_tokens(shared_start([self._header, *headers])) if headers else ""
        place = row.text.find(sure, row.end_of(number - 1)) if sure.strip() else -1
        if place < 0:
            return None
        rest = row.text[place:]
        whole = [len(header) for header in headers if rest.startswith(header)]
        start = place + (max(whole) if whole else len(self._whole_tokens(shared_start([headers[0], rest]))))
        content = row.start_of(number)
        return start if content is None or start <= content else None

    def _found_end(self, row: _Row, number: int, start: int | None) -> int | None:
        if start is None or not (found := self._turn_end.search(row.text, max(start, row.end_of(number)))):
            return None
        following = row.start_of(number + 1)
        if following is not None and found.start() >= following:
            return None
        return len(row.text[: found.start()].rstrip()) if found[0] in self._ends.next else found.end()

    @cached_property
    def _header(self) -> str:
        """What a template writes before an answer, with a thought or without, as far as it is the same."""
        user = {"role": "user", "content": "?"}
        prompt, base = (self._template.write([user], prompt=prompt)[0] for prompt in (True, False))
        texts = []
        for more in ({}, {"reasoning_content": "?"}):
            answer = {"role": "assistant", "content": "?", **more}
            for messages in ([user, answer], [user, answer, user]):
                try:
                    texts.append(self._template.write(messages)[0])
                except RowError:
                    continue
        return shared_start([prompt, *texts]).removeprefix(base)

    def _whole_tokens(self, text: str) -> str:
        """The text without a piece of a control token at its end."""
        longest = max(map(len, self._endings), default=0)
        for cut in range(max(0, len(text) - longest), len(text)):
            piece = text[cut:]
            if any(token.startswith(piece) and token != piece for token in self._endings):
                return text[:cut]
        return text


class _Row:
    """A conversation with its text.

    Args:
        template, conversation, tools, text: as `Unmarked.bounds` has them.
    """

    def __init__(
        self, template: Compiled, conversation: Conversation, tools: Sequence[Mapping[str, Any]], text: str
    ) -> None:
        self._template, self._conversation, self._tools, self.text = template, conversation, tools, text

    def write(self, count: int, *, prompt: bool = False, **more: Any) -> str:
        """The first turns."""
        return self._template.write(self._conversation[:count], self._tools, prompt=prompt, **more)[0]

    def start_of(self, number: int) -> int | None:
        """Where a turn's content starts; None where it has none that is written."""
        return self._places[number][0] if number in self._places else None

    def end_of(self, number: int) -> int:
        """Where the content of a turn ends, or of the last one before it that is written."""
        return max((end for turn, (_, end) in self._places.items() if turn <= number), default=0)

    @cached_property
    def _places(self) -> dict[int, Bounds]:
        marks = Sentinels(self._conversation, self._tools)
        marked = self._template.write(marks.places(self._conversation, said=True), self._tools)[0]
        clean, places = marks.find_places(marked)
        if clean != self.text:
            raise _hidden(len(self._conversation) - 1)
        return {message: (start, end) for start, end, message in places}


def _hidden(number: int) -> RowError:
    return RowError(
        f"cannot locate the answer in turn {number + 1}: the tokenizer's chat template renders a"
        " turn differently when another follows",
        field=f"messages[{number}]",
        cure="set template, or split the conversation so that it ends with this turn",
    )
