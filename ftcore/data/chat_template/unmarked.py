"""Locates the assistant's text for chat templates without ``{% generation %}`` marks.

An answer starts where its prompt ends, and ends where the conversation up to it ends. Some templates render earlier
turns differently, for instance without reasoning. For these, sentinels around the contents locate the turns, and the
prompt and the end tokens supply the text around them.
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
"""Start and end of the assistant's text in a turn."""


class Unmarked:
    """Locates answers for a template without marks.

    Args:
        template: the template.
        controls: the special tokens of the tokenizer.
        ends: the end tokens of the template.
    """

    def __init__(self, template: Compiled, controls: Sequence[str], ends: TurnEnds) -> None:
        self._template, self._ends = template, ends
        self._endings = (*controls, *ends.every)
        self._variants: list[dict[str, Any]] = [{}]
        for name in ("enable_thinking", "thinking"):  # Qwen's and most, DeepSeek's
            if name in template.source:
                self._variants += [{name: False}, {name: True}]
        # a control token in user content follows a sentinel
        guard = f"(?<![{chr(AREA[0])}-{chr(AREA[-1])}])"
        found = "|".join(map(re.escape, (*ends.every, *ends.next))) or "(?!)"  # (?!) never matches
        self._turn_end = re.compile(f"{guard}(?:{found})")

    def bounds(
        self, conversation: Conversation, tools: Sequence[Mapping[str, Any]], text: str, numbers: Sequence[int]
    ) -> list[Bounds]:
        """The span of the assistant's text in each of the turns ``numbers``.

        Raises:
            RowError: a span cannot be located.
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
        """The end of the last turn; white space after its control token belongs to the template."""
        cut = text.removesuffix(self._ends.trailer)
        for stripped in (cut.rstrip(), text.rstrip()):
            if stripped.endswith(self._endings):
                return len(stripped)
        return len(text)

    def _own_end(self, text: str, end: int) -> int:
        """The end of a turn whose end token is written only if another turn follows (Apriel)."""
        if text[:end].endswith(self._endings):
            return end
        found = self._turn_end.match(text, end + len(text[end:]) - len(text[end:].lstrip()))
        return found.end() if found and found[0] in self._ends.history else end

    def _start(self, row: _Row, number: int) -> int | None:
        """The end of the prompt for a turn; if the prompt is not a prefix of the text, the end of the turn's header.

        If row and prompt differ in reasoning, the prompts with and without reasoning are tried.
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
        """The common text before an answer with and without reasoning."""
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
        """The text without an incomplete control token at its end."""
        longest = max(map(len, self._endings), default=0)
        for cut in range(max(0, len(text) - longest), len(text)):
            piece = text[cut:]
            if any(token.startswith(piece) and token != piece for token in self._endings):
                return text[:cut]
        return text


class _Row:
    """A conversation with its text.

    Args:
        template, conversation, tools, text: see `Unmarked.bounds`.
    """

    def __init__(
        self, template: Compiled, conversation: Conversation, tools: Sequence[Mapping[str, Any]], text: str
    ) -> None:
        self._template, self._conversation, self._tools, self.text = template, conversation, tools, text

    def write(self, count: int, *, prompt: bool = False, **more: Any) -> str:
        """Renders the first ``count`` turns."""
        return self._template.write(self._conversation[:count], self._tools, prompt=prompt, **more)[0]

    def start_of(self, number: int) -> int | None:
        """The start of a turn's content; None if the turn has no rendered content."""
        return self._places[number][0] if number in self._places else None

    def end_of(self, number: int) -> int:
        """The end of the content of a turn, or of the last earlier turn with content."""
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
