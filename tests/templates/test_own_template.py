"""A template as a tokenizer's own, without generation marks: stop tokens and mask are those of the named template."""

from __future__ import annotations

import re
from typing import Any

import pytest
from harness import BY_NAME, frozen_date
from oracle_map import ENTRIES
from test_prompts import CHATS
from tokenizers import AddedToken

from ftcore.api.components import ChatTemplate
from ftcore.api.option_groups import DataOptions
from ftcore.api.samples import Place
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.preprocessing.prepare import Prepared, prepare
from ftcore.errors import RowError
from ftcore.testing import tiny_tokenizer

_MARK = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
_CONTROL = re.compile(r"<\|?[\w|/:-]+\|?>|\[/?[A-Z_]+\]|<｜[^'<>]+?｜>")

NEVER_WRITTEN = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<|eom_id|>", "<|eom|>")
"""Further stops of a template's name: the model's own end of text, and ends that no answer of ours is written with."""
STOPS = {
    "chatglm": {"<|observation|>"},  # it has no tools
    "rwkv": {"\n\n"},  # two line breaks, which end paragraphs elsewhere
}
"""Template -> stops of its name that it does not write after an answer as a control token."""

REFUSED = {
    "falcon": ("many turns", "system"),
    "fewshot": ("many turns", "system"),
    "solar": ("many turns", "system"),
    "index": ("many turns", "system"),
    "mistral": ("system",),
    "ministral": ("system",),
    "deepseek3_2": ("tool answered",),
    "glmz1": ("tool called", "tool answered"),
}
"""Rows that are refused, since nothing shows where an answer begins or ends: plain words, a system message that moves
to the last question, a prompt that begins a thought which the text does not have."""

_THOUGHT = ("thought", "thoughts")
_PLAIN = ("one turn", "many turns", "system", "tools offered", "tool called")
MASKS: dict[str, tuple[tuple[str, ...], set[str], str]] = {
    "qwen3_5_nothink": (_THOUGHT, {"<think>", "\n"}, "not"),  # in the prompt for a thought they stand already
    "gemma4": (_THOUGHT, {"<|channel>", "t", "h", "ou", "g", "\n"}, "not"),  # the same
    "glmz1": (("one turn", "many turns", "system", "tools offered", "thoughts"), {"\n"}, "not"),  # the same
    "deepseek3_2": ((*_PLAIN, "thoughts"), {"</think>"}, "also"),  # its prompt never closes the thought
    "yi_vl": (("many turns", "system"), {"###"}, "also"),  # what ends an answer also begins the next turn
}
"""Template -> rows, the tokens, and whether they are trained also, or not, where the template has no name."""


def unmarked(source: str) -> str:
    """The template as makers publish them; blanks are cut where the marks cut them."""
    return _MARK.sub(lambda mark: f"{{%{mark[1]} {'endif' if mark[2] else 'if true'} {mark[3]}%}}", source)


def tokenizer_of(template: ChatTemplate) -> Any:
    """One that has the template's control tokens, special but without a name, and another end-of-sequence token."""
    tokens = ENTRIES.get(template.name, {}).get("tokens", {})
    tokenizer = tiny_tokenizer(("<pad>", "<eos>"))
    controls = {*_CONTROL.findall(template.source()), *template.stop, *filter(None, tokens.values())}
    tokenizer.add_tokens([AddedToken(control, special=True, normalized=False) for control in sorted(controls)])
    for name in tokens.keys() & {"bos_token", "eos_token", "unk_token"}:
        setattr(tokenizer, name, tokens[name])
    return tokenizer


def rows(renderer: Renderer) -> dict[str, tuple[list[int], list[float]] | None]:
    """Tokens and weights of every conversation; None of those that are refused."""
    found: dict[str, tuple[list[int], list[float]] | None] = {}
    with frozen_date():
        for case, chat in CHATS.items():
            ((_, row),) = prepare([(Place("x", 1), chat)], renderer, DataOptions())
            if isinstance(row, RowError):
                found[case] = None
            else:
                assert isinstance(row, Prepared)
                found[case] = (row.labelled.encoded.ids.tolist(), row.labelled.weights.tolist())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_stops_and_masks_are_those_of_the_name(name: str) -> None:
    template = BY_NAME[name]
    tokenizer = tokenizer_of(template)
    named = Renderer(tokenizer, template.source(), stop=template.stop)
    own = Renderer(tokenizer, unmarked(template.source()))
    with frozen_date():
        wanted, found = ([tokenizer.decode([token]) for token in one.stop_ids] for one in (named, own))
    assert set(found) <= set(wanted)
    assert set(wanted) - set(found) <= {*NEVER_WRITTEN, *STOPS.get(name, ())} - {tokenizer.eos_token}
    if name not in STOPS:  # the token that training teaches
        assert found[0] == wanted[0]

    theirs, ours = rows(named), rows(own)
    refused = [case for case, row in theirs.items() if row is not None and ours[case] is None]
    assert refused == list(REFUSED.get(name, ()))
    cases, tokens, how = MASKS.get(name, ((), set(), ""))
    compared = 0
    for case, row in theirs.items():
        if row is None or case in refused:
            continue
        (ids, weights), other = row, ours[case]
        assert other is not None
        assert other[0] == ids
        different = [place for place in range(len(ids)) if weights[place] != other[1][place]]
        assert {tokenizer.decode([ids[place]]) for place in different} == (tokens if case in cases else set()), case
        assert all((other[1][place] > 0) == (how == "also") for place in different)
        compared += 1
    assert compared
