"""The tokens that end the model's turn, found from what a chat template writes after an answer.

A model learns to stop with the token that its template writes there. It need not be the tokenizer's end-of-sequence
token (Gemma: ``<end_of_turn>`` and ``<eos>``), and it need not be in the tokenizer's map of special tokens either.
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
"""Stands for an answer: no template writes it, and none cuts it off."""


@dataclass(frozen=True, slots=True)
class TurnEnds:
    """Control tokens at the end of an answer.

    Args:
        last: of an answer that ends a conversation.
        history: of one that the user answers.
        next: what begins the user's turn after an answer that nothing of its own ends.
        call: of one that calls tools.
        trailer: what the template writes after ``last``; no model says it.
    """

    last: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    call: tuple[str, ...] = ()
    trailer: str = ""

    @property
    def stops(self) -> tuple[str, ...]:
        """What ends generation: an answer within a conversation may end with less (gpt-oss: ``<|end|>``)."""
        return tuple(dict.fromkeys((*(self.last or self.history or self.next), *self.call)))

    @property
    def every(self) -> tuple[str, ...]:
        """What may stand at the end of an answer."""
        return tuple(dict.fromkeys((*self.last, *self.history, *self.call)))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """All special tokens: those with a name, such as ``eos_token``, and those that are only marked as special."""
    marked = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(token for token in dict.fromkeys((*tokenizer.all_special_tokens, *marked)) if token.strip())


def turn_ends(template: Compiled, tokenizer: PreTrainedTokenizerBase) -> TurnEnds:
    """The ends of turns of a template with a tokenizer; empty where it writes no control token after an answer."""
    special = special_tokens(tokenizer)
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
    controls = _any_of([*special, *added])
    user = {"role": "user", "content": _ANSWER}
    answers = (_answer(), _answer(reasoning_content="A thought."))  # some take none without
    before, _, last = next(filter(None, (_pieces(template, [user, one]) for one in answers)), ["", "", ""])
    longer = next(filter(None, (_pieces(template, [user, one, user]) for one in answers)), ["", "", "", ""])
    between = longer[2]
    # What is written in the middle of a conversation as well is the turn's; what follows at its end is not (Phi 3).
    shared = len(shared_start([last, between]))
    own = [found for found in controls.finditer(last) if found.end() <= shared]
    ends = own or list(controls.finditer(last))
    first = controls.match(between.lstrip())
    # An end is followed by another control token, or the user's turn begins otherwise.
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
    """What is written around the contents; empty where the template refuses the conversation or hides one of them."""
    try:
        pieces = template.write(messages)[0].split(_ANSWER)
    except RowError:
        return []
    return pieces if len(pieces) == len(messages) + 1 else []


def _call_ends(template: Compiled, special: Sequence[str]) -> tuple[str, ...]:
    """The special token after calls of tools; what stands between two calls as well ends a call, and not the turn."""
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
    """Ids that the base model's makers say it stops with: ``eos_token_id`` of its generation_config.json.

    Where there is no such file, config.json says it, as transformers reads them. Empty where nothing is said.
    """
    from ftcore.models.files import beside_model

    file = beside_model(plan, "generation_config.json")
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file else plan.config
    except (OSError, ValueError):
        return ()
    ids = found.get("eos_token_id") if isinstance(found, Mapping) else None
    return tuple(token for token in (ids if isinstance(ids, list) else [ids]) if type(token) is int)
