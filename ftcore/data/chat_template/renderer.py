"""Renders conversations and locates the assistant's text.

The template runs in transformers' sandboxed environment, from the source that is saved with the tokenizer. Training,
inference and the exported tokenizer therefore render the same text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ftcore.api.components import ChatTemplate
from ftcore.api.samples import Chat, Message
from ftcore.data.chat_template.jinja_env import Compiled
from ftcore.data.chat_template.layout_cache import LayoutCache
from ftcore.data.chat_template.reasoning import (
    THINK,
    Tags,
    holds,
    tags_between,
    thought_of,
    with_reasoning,
    without_thoughts,
)
from ftcore.data.chat_template.rendered import Rendered, Span
from ftcore.data.chat_template.sentinels import Conversation, Sentinels, control_tokens, strings
from ftcore.data.chat_template.turn_ends import TurnEnds, model_stops, special_tokens, turn_ends
from ftcore.data.chat_template.unmarked import Unmarked
from ftcore.errors import Problem, RowError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftcore.api.plan import Plan
    from ftcore.data.multimodal.images import ImageReader


class Renderer:
    """A chat template with a tokenizer.

    Args:
        tokenizer: a fast tokenizer.
        source: Jinja source. ``{% generation %}`` marks enclose the assistant's text; without marks, rendered prefixes
            locate it.
        stop: stop tokens of the template; empty to detect them.
        default_system: system message of conversations without one; None: as the template says, empty: none.
        enable_thinking: variable of the template; None: as the template says.
        preserve_thinking: likewise.
        name: name of the template, for errors.
        where: place that names the template, for errors.
        model_stops: further stop ids of the model.

    Attributes:
        source: the source to save as ``chat_template``, including a default system message.
        variables: variables of the template besides messages and tools.
        pictures: the image reader; None if rows with images are refused.

    Raises:
        UsageError: the first of ``stop`` is not one token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        source: str,
        *,
        stop: Sequence[str] = (),
        default_system: str | None = None,
        enable_thinking: bool | None = None,
        preserve_thinking: bool | None = None,
        name: str = "the chat template",
        where: str = "",
        model_stops: Sequence[int] = (),
    ) -> None:
        self.tokenizer, self.stop, self.default_system = tokenizer, tuple(stop), default_system
        self._model_stops = tuple(model_stops)
        self.source = source if default_system is None else _with_default_system(source, default_system)
        self.variables = dict(tokenizer.special_tokens_map)
        for variable, value in (("enable_thinking", enable_thinking), ("preserve_thinking", preserve_thinking)):
            if value is not None:
                self.variables[variable] = value
        self.pictures: ImageReader | None = None
        self._template = Compiled(self.source, self.variables, name, where)
        self._layouts = LayoutCache()
        self._controls_read, self._controls_said = control_tokens(tokenizer, source)
        if self.stop and _token_id(tokenizer, self.stop[0]) is None:
            raise UsageError(_no_stop(self.stop[0]))

    @classmethod
    def from_plan(cls, plan: Plan, tokenizer: PreTrainedTokenizerBase) -> Renderer:
        """The template of the plan; without one, the tokenizer's own.

        Raises:
            UsageError: the tokenizer has no template, or lacks the stop token of the template.
        """
        stop: Sequence[str] = ()
        if plan.template is None:
            source = _own_source(plan, tokenizer)
            name, where = "the tokenizer's own chat template", plan.where("model_name_or_path")
        else:
            template = plan.template.component
            name, where = f"template {template.name!r}", plan.where("template")
            source, stop = template.source(), template.stop
            if stop and _token_id(tokenizer, stop[0]) is None:
                where = plan.options["template"].origin if "template" in plan.options else ""
                raise UsageError(_no_stop(stop[0], template.name, where))
        data = plan.data
        return cls(
            tokenizer,
            source,
            stop=stop,
            default_system=data.default_system,
            enable_thinking=data.enable_thinking,
            preserve_thinking=data.preserve_thinking,
            name=name,
            where=where,
            model_stops=model_stops(plan),
        )

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Stop ids: the template's stop tokens, the tokenizer's end-of-sequence token and the model's stop ids.

        Generation and saved generation configurations all use these ids.
        """
        known = [_token_id(self.tokenizer, stop) for stop in self.stop or self.ends.stops]
        known += [self.tokenizer.eos_token_id, *(token for token in self._model_stops if token < len(self.tokenizer))]
        return tuple(dict.fromkeys(token for token in known if token is not None))

    @cached_property
    def ends(self) -> TurnEnds:
        """The end tokens of the template."""
        return turn_ends(self._template, self.tokenizer)

    @cached_property
    def _unmarked(self) -> Unmarked:
        return Unmarked(self._template, special_tokens(self.tokenizer), self.ends)

    @cached_property
    def borders(self) -> tuple[str, str]:
        """Begin and end token of a document; empty if the tokenizer has none."""
        tokenizer = self.tokenizer
        writes_bos = tokenizer.bos_token and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        return (tokenizer.bos_token if writes_bos else ""), tokenizer.eos_token or ""

    @cached_property
    def thinks(self) -> bool:
        """Whether the template renders ``reasoning_content``; some templates only mention it in an error."""
        return len(self._around_thought) > 1

    @cached_property
    def tags(self) -> tuple[Tags, ...]:
        """Tags of reasoning in an answer: ``<think>``, and the template's own tags."""
        return tags_between(*self._around_thought) if self.thinks else (THINK,)

    @cached_property
    def _around_thought(self) -> list[str]:
        """The text before and after reasoning; a single text if the template does not render it."""
        answer = {"role": "assistant", "content": "!", "reasoning_content": "a thought"}
        more: dict[str, Any] = {"enable_thinking": True} if self.variables.get("enable_thinking") is False else {}
        try:
            return self._template.write([{"role": "user", "content": "?"}, answer], **more)[0].split("a thought", 1)
        except RowError:
            return []

    def controls_in(self, text: str) -> list[tuple[int, int]]:
        """``(start, end)`` of the tokenizer's special tokens in a text."""
        return [found.span() for found in self._controls_said.finditer(text)]

    def render(self, chat: Chat) -> Rendered:
        """Renders a whole conversation.

        Raises:
            RowError: the template refuses it, does not render a part of it, or answers cannot be located.
        """
        return self._render(chat.messages, chat.tools)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        """Renders a conversation as a prompt, up to the start of the answer."""
        return self._render(messages, tools, prompt=True)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The token ids of `prompt`.

        Raises:
            UsageError: the template refuses the conversation.
        """
        from ftcore.data.tokenization.encoder import encode

        try:
            return encode(self.tokenizer, [self._render(messages, tools, prompt=True, read=False)])[0].ids.tolist()
        except RowError as error:
            raise UsageError(Problem(error.reason, hint=error.cure)) from error

    def _render(
        self,
        given: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        *,
        prompt: bool = False,
        read: bool = True,
    ) -> Rendered:
        """Renders a conversation. The other messages are located only with ``read``: that doubles the cost."""
        given = self._with_system(given)
        messages = self._with_thoughts(given)
        self._check(messages, tools)
        conversation = [message.as_dict() for message in messages]
        if self._has_controls(conversation, tools):
            rendered = self._render_controls(messages, conversation, tools, prompt=prompt, read=read)
            return replace(rendered, lost=self._lost(given, messages, rendered.text, rendered.said))
        text, generated = self._template.write(conversation, tools, prompt=prompt)
        said = () if prompt else self._said(conversation, tools, text, generated)
        check_text(text)
        lost = self._lost(given, messages, text, said)
        if not read:
            return Rendered(text, messages, tuple(said), lost=lost)
        bodies = ["" if message.role == "assistant" else message.content for message in messages]
        places = self._layouts.find(text, [(span.start, span.end) for span in said], bodies)
        if places is None:
            places = self._places(Sentinels(conversation, tools), conversation, tools, text, prompt=prompt)
            self._layouts.learn(text, [(span.start, span.end) for span in said], bodies, places)
        return Rendered(text, messages, tuple(said), tuple(Span(*place) for place in places), lost=lost)

    def _render_controls(
        self,
        messages: tuple[Message, ...],
        conversation: Conversation,
        tools: Sequence[Mapping[str, Any]],
        *,
        prompt: bool,
        read: bool,
    ) -> Rendered:
        """Renders a conversation with control tokens in its contents."""
        marks = Sentinels(conversation, tools)
        conversation, tools = self._mark_controls(marks, conversation, tools)
        text, generated = self._template.write(conversation, tools, prompt=prompt)
        places = self._places(marks, conversation, tools, text, prompt=prompt) if read else []
        spans = () if prompt else self._said(conversation, tools, text, generated)
        text, controls, at = marks.find_controls(text)
        check_text(text)
        said = tuple(Span(at(span.start), at(span.end), span.message) for span in spans)
        found = tuple(Span(at(start), at(end), message) for start, end, message in places)
        return Rendered(text, messages, said, found, tuple(controls))

    def _places(
        self,
        marks: Sentinels,
        conversation: Conversation,
        tools: Sequence[Mapping[str, Any]],
        text: str,
        *,
        prompt: bool,
    ) -> list[tuple[int, int, int]]:
        """``(start, end, message)`` of the other messages; empty if sentinels change the rendered text."""
        placed, _ = self._template.write(marks.places(conversation), tools, prompt=prompt)
        clean, places = marks.find_places(placed)
        return places if clean == text else []

    def _with_system(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        # The template would add it as well; as a message its tokens count as a system message.
        if self.default_system and not (messages and messages[0].role == "system"):
            return (Message("system", self.default_system), *messages)
        return tuple(messages)

    def _with_thoughts(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages for the template, with reasoning separated or removed; the same in training and prompts."""
        if self.variables.get("enable_thinking") is False:
            return without_thoughts(messages, self.tags)
        return with_reasoning(messages, self.tags) if self.thinks else messages

    def _lost(
        self, given: Sequence[Message], written: Sequence[Message], text: str, said: Sequence[Span]
    ) -> tuple[int, ...]:
        """Indices of answers whose reasoning is not in the rendered text."""
        thoughts = ((span, thought_of(given[span.message], self.tags)) for span in said)
        return tuple(
            span.message
            for span, thought in thoughts
            if thought and not holds(text[span.start : span.end], thought, written[span.message].content.strip())
        )

    def _check(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> None:
        """Raises an error for parts that the template would drop silently."""
        there = {"tools"} if tools else set()
        for message in messages:
            if message.tool_calls:
                there.add("tool_calls")
            if message.reasoning:
                there.add("reasoning_content")
        for name in sorted(there):
            if name not in self.source:
                cure = "choose a template that supports them, or remove them from the row"
                raise RowError(f"the chat template does not render {name}", field=name, cure=cure)

    def _has_controls(self, conversation: Conversation, tools: Sequence[Mapping[str, Any]]) -> bool:
        for message in conversation:
            tokens = self._controls_said if message["role"] == "assistant" else self._controls_read
            # Most messages have only role and content: this saves 3 us.
            texts = [message["content"]] if len(message) == 2 else strings(message)
            if any(map(tokens.search, texts)):
                return True
        return any(map(self._controls_read.search, strings(list(tools))))

    def _mark_controls(
        self, marks: Sentinels, conversation: Conversation, tools: Sequence[Mapping[str, Any]]
    ) -> tuple[Conversation, Sequence[Mapping[str, Any]]]:
        marked = [
            marks.controls(message, self._controls_said if message["role"] == "assistant" else self._controls_read)
            for message in conversation
        ]
        return marked, marks.controls(list(tools), self._controls_read)

    def _said(
        self,
        conversation: Conversation,
        tools: Sequence[Mapping[str, Any]],
        text: str,
        generated: Sequence[tuple[int, int]],
    ) -> Sequence[Span]:
        numbers = [number for number, message in enumerate(conversation) if message["role"] == "assistant"]
        if not self._template.marked:
            bounds = self._unmarked.bounds(conversation, tools, text, numbers)
            return [Span(*each, number) for each, number in zip(bounds, numbers, strict=True)]
        if len(generated) != len(numbers):
            reason = f"the chat template marks {len(generated)} generations for {len(numbers)} assistant turns"
            raise RowError(reason, cure="write each answer as one turn, or choose another template")
        return [Span(*span, number) for span, number in zip(generated, numbers, strict=True)]


def _with_default_system(source: str, system: str) -> str:
    """The template with a default system message: a variable if it reads ``default_system``, else a message."""
    literal = json.dumps(system, ensure_ascii=False)
    if "default_system" in source:
        return f"{{%- set default_system = {literal} %}}{source}"
    if not system:
        return source
    message = f"{{'role': 'system', 'content': {literal}}}"
    return (
        "{%- if not messages or messages[0].role != 'system' %}"
        f"{{%- set messages = [{message}] + messages %}}{{%- endif %}}{source}"
    )


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    return tokenizer.backend_tokenizer.token_to_id(token)


def _no_stop(token: str, template: str = "", where: str = "") -> Problem:
    name = f"template {template!r}" if template else "the chat template"
    hint = "choose the template that the model was trained with, or leave template out to use the tokenizer's own"
    return Problem(f"{name} ends turns with {token!r}, which is not one token in this tokenizer", where, hint)


def _own_source(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        names = ", ".join(sorted(offer.component.name for offer in plan.plugins.of(ChatTemplate)))
        raise UsageError(Problem("the tokenizer has no chat template of its own", plan.file, f"set template: {names}"))
    return tokenizer.get_chat_template()


def check_text(text: str) -> None:
    """Raises an error for text that tokenizers cannot encode.

    Raises:
        RowError: the text contains an unpaired surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        value = text[max(error.start - 20, 0) : error.start]
        reason = f"the text contains an unpaired surrogate: \\u{ord(text[error.start]):04x}"
        raise RowError(reason, field=f"after {value!r}", cure="repair the text, or remove the row") from error
