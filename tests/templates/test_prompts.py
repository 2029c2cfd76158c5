"""What the model sees when it answers is, token for token, what came before the answer when it was trained."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from harness import BY_NAME, frozen_date
from oracle_map import ENTRIES

from ftcore.api.components import ChatTemplate
from ftcore.api.option_groups import DataOptions
from ftcore.api.samples import Chat, Message, Place
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.preprocessing.prepare import Prepared, prepare
from ftcore.errors import RowError, UsageError
from ftcore.testing import SPECIAL_TOKENS, tiny_tokenizer

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ONE = (Message("user", "hello there"), Message("assistant", "one two"))
MORE = (*ONE, Message("user", "and now?"), Message("assistant", "three"), Message("user", "你好"))
CALLED = (
    Message("user", "what is the weather?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", '{"sky": "grey"}'),
    Message("assistant", "It is grey."),
)
CHATS: dict[str, Chat] = {
    "one turn": Chat(ONE),
    "many turns": Chat((*MORE, Message("assistant", "世界。"))),
    "system": Chat((Message("system", "be brief"), *MORE, Message("assistant", "four"))),
    "tools offered": Chat(ONE, (TOOL,)),
    "tool called": Chat(CALLED[:2], (TOOL,)),
    "tool answered": Chat(CALLED, (TOOL,)),
    "thought": Chat((ONE[0], Message("assistant", "one two", "so many"))),
    "thoughts": Chat(
        (
            ONE[0],
            Message("assistant", "one two", "so many"),
            Message("user", "and?"),
            Message("assistant", "three", "what comes next"),
        )
    ),
}


def renderer_of(template: ChatTemplate, thinking: bool | None) -> Renderer:
    """The template with a tokenizer that has its control tokens."""
    source, tokens = template.source(), ENTRIES.get(template.name, {}).get("tokens", {})
    tokenizer = tiny_tokenizer()
    controls = {*re.findall(r"<\|?[\w|-]+\|?>|\[/?[A-Z_]+\]", source), *template.stop, *filter(None, tokens.values())}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*SPECIAL_TOKENS[1:-1], *controls})})
    for name, token in tokens.items():
        if name in ("bos_token", "eos_token", "unk_token"):
            setattr(tokenizer, name, token)
    return Renderer(tokenizer, source, stop=template.stop, enable_thinking=thinking)


def difference(renderer: Renderer, chat: Chat) -> str | None:
    """What inference shows beyond what training did; empty where nothing; None where the template cannot do it."""
    with frozen_date():
        try:
            (found,) = prepare([(Place("x", 1), chat)], renderer, DataOptions())
            prompt = renderer.prompt_ids(chat.messages[:-1], chat.tools)
        except (RowError, UsageError):
            return None
    row = found[1]
    if isinstance(row, RowError):
        return None
    assert isinstance(row, Prepared)
    trained = row.labelled.encoded.ids.tolist()
    same = next((n for n, pair in enumerate(zip(prompt, trained, strict=False)) if pair[0] != pair[1]), len(prompt))
    return renderer.tokenizer.decode(prompt[same:])


THOUGHTS = ("thought", "thoughts")
PLAIN = ("one turn", "many turns", "system", "tools offered", "tool called", "tool answered")
PLAIN_CHATS = PLAIN[:3]
QWEN = "\n</think>\n\n"
EXCEPTIONS: dict[str, dict[str, tuple[tuple[bool | None, ...], tuple[str, ...], str]]] = {
    "the prompt says that nothing is thought, and the row has a thought": {
        "deepseek3_1": ((None,), THOUGHTS, "</think>"),
        "deepseek4": ((None,), THOUGHTS, "</think>"),
        "gemma4": ((None,), THOUGHTS, "<channel|>"),
        "hy3": ((None,), THOUGHTS, "</think:opensource>"),
        "qwen3_5_nothink": ((None,), THOUGHTS, QWEN),
        "laguna": ((None,), THOUGHTS, "</think>"),
        "laguna_2_1": ((None,), THOUGHTS, "</think>"),
    },
    "the prompt begins a thought, and the row has none": {
        "aeva": ((None, True), PLAIN, "<think>"),
        "deepseekr1": ((None,), PLAIN_CHATS, "<think>\n"),
        "gemma4n": ((True,), ("tool answered",), "<|channel>thought\n"),
        "glm4_7": ((None, True), PLAIN, "<think>"),
        "glmz1": ((None,), PLAIN, "<think>"),
        "minimax2": ((None,), PLAIN, "<think>\n"),
        "bielik": ((True,), PLAIN, "<think>\n"),
        "minicpm5": ((True,), PLAIN, "<think>\n"),
        "nemotron3": ((None, True), PLAIN, "\n"),
        "nemotron3_ultra": ((None, True), PLAIN, "\n"),
        "nemotron_v2": ((None, True), PLAIN, "\n"),
        "spark": ((None, True), PLAIN, "<think>"),
        "laguna": ((True,), PLAIN, "<think>"),
        "laguna_2_1": ((True,), PLAIN, "<think>"),
        "minimax3": ((True,), PLAIN, "mm:think>"),
        "apriel1_6": ((None,), PLAIN, "Here are my reasoning steps:\n"),
        "cohere2_moe": ((None, True), PLAIN, "<|START_THINKING|>"),
    },
    "the vendor's prompt ends with an empty thought, which a call without one does not have": {
        "nemotron_v2": ((False,), ("tool called",), "<think></think>"),
    },
    "the vendor's prompt closes an empty thought that its rendering of an answer does not have": {
        "deepseek3_2": ((None, False), PLAIN + THOUGHTS, "</think>"),
    },
    "the same, of a row whose thought is left out": {
        "ernie_nothink": ((False,), THOUGHTS, " "),
    },
    "the prompt ends in a blank, which the answer's first token swallows": {
        "breeze": ((None,), ("one turn", "system"), " "),
        "ernie_nothink": ((None, True, False), ("one turn", "system"), " "),
    },
}
"""Reason -> template -> thinking, cases, and what inference shows beyond what training did (or a part of it)."""


def expected(name: str, thinking: bool | None, case: str) -> str:
    """What a template is known to show beyond the training rendering; empty for nothing."""
    for templates in EXCEPTIONS.values():
        modes, cases, rest = templates.get(name, ((), (), ""))
        if thinking in modes and case in cases:
            return rest
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_the_prompt_is_the_beginning_of_what_was_trained(name: str) -> None:
    template = BY_NAME[name]
    modes = (None, True, False) if "enable_thinking" in template.source() else (None,)
    compared = 0
    for thinking in modes:
        renderer = renderer_of(template, thinking)
        for case, chat in CHATS.items():
            found = difference(renderer, chat)
            if found is None:
                continue
            compared += 1
            known = expected(name, thinking, case)
            assert known in found, (thinking, case)
            assert bool(found) == bool(known), (thinking, case, found)
    assert compared >= 2 * len(modes)


@pytest.mark.slow
def test_thoughts_in_the_text_of_earlier_answers_are_read_as_in_training() -> None:
    """As a model says them and a chat keeps them, they go where the template writes thoughts."""
    chats = [
        (ONE[0], Message("assistant", *said), Message("user", "and?"))
        for said in (("<think>\nso many\n</think>\n\none two",), ("one two", "so many"))
    ]
    compared = 0
    for template in BY_NAME.values():
        renderer = renderer_of(template, None)
        if not renderer.thinks:
            continue
        with frozen_date():
            written, kept = (renderer.prompt_ids(chat) for chat in chats)
        assert written == kept, template.name
        compared += 1
    assert compared > 20


def texts_of(chat: Chat, opening: str, closing: str) -> Chat:
    """The conversation with its thoughts in the texts of the answers."""
    messages = (
        replace(message, reasoning=None, content=f"{opening}\n{message.reasoning}\n{closing}\n\n{message.content}")
        if message.reasoning
        else message
        for message in chat.messages
    )
    return replace(chat, messages=tuple(messages))


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_no_thought_is_trained_where_thinking_is_off(name: str) -> None:
    """As fields and as texts; and every answer that loses its thought is counted."""
    renderer = renderer_of(BY_NAME[name], thinking=False)
    chat = CHATS["thoughts"]
    bare = replace(chat, messages=tuple(replace(message, reasoning=None) for message in chat.messages))
    whole = DataOptions(cutoff_len=8192)
    given = [bare, chat, *(texts_of(chat, *tags) for tags in renderer.tags)]
    with frozen_date():
        rows = [row for _, row in prepare([(Place("x", 1), one) for one in given], renderer, whole)]
        prompts = [renderer.prompt_ids(one.messages[:-1]) for one in given]
    assert all(isinstance(row, Prepared) for row in rows)
    without, *others = rows
    for row in others:
        assert row.labelled.encoded.ids.tolist() == without.labelled.encoded.ids.tolist()
        assert row.labelled.weights.tolist() == without.labelled.weights.tolist()
        assert row.thoughtless == 2
    assert without.thoughtless == 0
    assert prompts == [prompts[0]] * len(given)


@pytest.mark.slow
def test_answers_are_counted_whose_thought_the_template_leaves_out() -> None:
    """Of two answers with thoughts the first loses its own in most templates; the last one never does."""
    found: dict[int, set[str]] = {}
    for name, template in BY_NAME.items():
        renderer, chat = renderer_of(template, None), CHATS["thoughts"]
        if not renderer.thinks:
            continue
        with frozen_date():
            ((_, row),) = prepare([(Place("x", 1), chat)], renderer, DataOptions())
            ((_, last),) = prepare([(Place("x", 1), chat)], renderer, DataOptions(mask_history=True))
        if isinstance(row, RowError):
            continue
        text = row.rendered.text
        trained = renderer.tokenizer.decode(row.labelled.encoded.ids[row.labelled.weights > 0])
        assert row.thoughtless == sum(thought not in trained for thought in ("so many", "what comes next")), name
        assert row.rendered.lost == tuple(
            place for place, thought in ((1, "so many"), (3, "what comes next")) if thought not in text
        ), name
        assert last.thoughtless == ("what comes next" not in text), name
        found.setdefault(row.thoughtless, set()).add(name)
    assert {count: len(names) for count, names in found.items()} == {0: 19, 1: 35}
