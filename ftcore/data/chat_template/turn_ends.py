"""Finds the stop tokens of a chat template from its text after an answer.

A model learns to stop with the token that its template writes after an answer. This token may not be the tokenizer's
end-of-sequence token (Gemma: ``<end_of_turn>`` and ``<eos>``), and may be missing from the tokenizer's map of special
tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftcore.data.chat_template.jinja_env import Compiled
from ftcore.errors import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftcore.api.plan import Plan

_ANSWER = chr(0xF0000)
"""Placeholder for an answer: templates neither write nor strip this character."""


@dataclass(frozen=True, slots=True)
class TurnEnds:
    """Control tokens at the end of an answer.

    Args:
        last: token after the last answer of a conversation.
        history: token after an answer that a user turn follows.
        next: token that starts the next user turn, if answers have no end token.
        call: token after an answer with tool calls.
        trailer: text of the template after ``last``, which the model does not generate.
    """

    last: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    call: tuple[str, ...] = ()
    trailer: str = ""

    @property
    def stops(self) -> tuple[str, ...]:
        """Tokens that end generation; earlier answers may end with another token (gpt-oss: ``<|end|>``)."""
        return tuple(dict.fromkeys((*(self.last or self.history or self.next), *self.call)))

    @property
    def every(self) -> tuple[str, ...]:
        """All tokens that may end an answer."""
        return tuple(dict.fromkeys((*self.last, *self.history, *self.call)))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """All special tokens: named ones such as ``eos_token``, and tokens only flagged as special."""
    marked = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(token for token in dict.fromkeys((*tokenizer.all_special_tokens, *marked)) if token.strip())


def turn_ends(template: Compiled, tokenizer: PreTrainedTokenizerBase) -> TurnEnds:
    """The end tokens of a template with a tokenizer; empty if it writes no control token after an answer."""
    special = special_tokens(tokenizer)
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
    controls = _any_of([*special, *added])
    user = {"role": "user", "content": _ANSWER}
    answers = (_answer(), _answer(reasoning_content="A thought."))  # some templates refuse answers without reasoning
    before, _, last = next(filter(None, (_pieces(template, [user, one]) for one in answers)), ["", "", ""])
    longer = next(filter(None, (_pieces(template, [user, one, user]) for one in answers)), ["", "", "", ""])
    between = longer[2]
    # Text that also follows earlier answers belongs to the turn; text only after the last answer does not (Phi 3).
    shared = len(shared_start([last, between]))
    own = [found for found in controls.finditer(last) if found.end() <= shared]
    ends = own or list(controls.finditer(last))
    first = controls.match(between.lstrip())
    # An end token is followed by another control token, or by a user turn that starts differently.
    opens = first is not None and not own and before.rstrip().endswith(between.strip())
    opens = opens and not controls.match(between.lstrip(), len(first[0] if first else ""))
    return TurnEnds(
        last=(ends[-1][0],) if ends else (),
        history=(own[-1][0],) if own else (first[0],) if first and not opens else (),
        next=(first[0],) if first and opens else (),
        call=_call_ends(template, special),
        trailer=last[ends[-1].end() :] if ends else "",
    )


def _answer(content: str = _ANSWER, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def _pieces(template: Compiled, messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The text around the contents; empty if the template refuses the conversation or drops a content."""
    try:
        pieces = template.write(messages)[0].split(_ANSWER)
    except RowError:
        return []
    return pieces if len(pieces) == len(messages) + 1 else []


def _call_ends(template: Compiled, special: Sequence[str]) -> tuple[str, ...]:
    """The special token after tool calls. A token that also separates two calls ends a call, not the turn."""
    call = {"type": "function", "id": "123456789", "function": {"name": _ANSWER, "arguments": {"a": 1}}}
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "description": "!", "parameters": parameters}}
    for calls in ([call, call], [call]):
        messages = [{"role": "user", "content": "?"}, _answer("", tool_calls=calls)]
        try:
            pieces = template.write(messages, [tool])[0].split(_ANSWER)[1:]
        except RowError:
            continue
        *between, end = pieces or [""]
        if len(pieces) == len(calls):
            ends = [token for token in special if end.rstrip().endswith(token) and end.count(token) == 1]
            return tuple(token for token in ends if not any(token in piece for piece in between))
    return ()


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(set(tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) never matches


def shared_start(texts: Sequence[str]) -> str:
    """The longest start that all texts have."""
    shortest = min(texts, key=len)
    for place, character in enumerate(shortest):
        if any(text[place] != character for text in texts):
            return shortest[:place]
    return shortest


def model_stops(plan: Plan) -> tuple[int, ...]:
    """The base model's stop ids: ``eos_token_id`` of its generation_config.json.

    Without this file, config.json is read, as in transformers. Empty if neither has the ids.
    """
    from ftcore.models.files import beside_model

    file = beside_model(plan, "generation_config.json")
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file else plan.config
    except (OSError, ValueError):
        return ()
    ids = found.get("eos_token_id") if isinstance(found, Mapping) else None
    return tuple(token for token in (ids if isinstance(ids, list) else [ids]) if type(token) is int)
