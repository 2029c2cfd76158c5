"""What rendering saves changes nothing: layouts remembered, and templates called without transformers' own function."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

import ft_plugins.templates
from ftcore.api.components import ChatTemplate
from ftcore.api.registry import Candidate, load
from ftcore.api.samples import Chat, Message
from ftcore.data.chat_template.jinja_env import Compiled
from ftcore.data.chat_template.renderer import Renderer
from ftcore.errors import RowError
from ftcore.testing import tiny_tokenizer

NAMES = ("chatml", "llama3", "chatglm3", "qwen", "qwen3")


@lru_cache
def source(name: str) -> str:
    plugins = load([Candidate("ftcore", "0", "templates", lambda: ft_plugins.templates)])
    return plugins.find(ChatTemplate, name).component.source()


@lru_cache
def tokenizer() -> Any:
    return tiny_tokenizer()


@lru_cache
def remembering(name: str) -> Renderer:
    return Renderer(tokenizer(), source(name))


words = st.sampled_from(
    ["", " ", "user", "one", " two\n", "\n\nthree ", "assistant\none", "<think>\nhm\n</think>\n\nso"]
)
turns = st.lists(st.tuples(words, words.map(lambda text: text or "x")), min_size=1, max_size=4)


def chat(system: str | None, pairs: list[tuple[str, str]]) -> Chat:
    messages = [Message("system", system)] if system is not None else []
    for question, answer in pairs:
        messages += [Message("user", question), Message("assistant", answer)]
    return Chat(tuple(messages))


def rendered(renderer: Renderer, row: Chat) -> Any:
    try:
        return renderer.render(row)
    except RowError as error:
        return error.reason


@pytest.mark.slow
@given(name=st.sampled_from(NAMES), system=st.none() | words, pairs=turns)
def test_remembered_layouts_tell_what_marks_tell(name: str, system: str | None, pairs: Any) -> None:
    """One renderer sees all conversations of the test, the other only this one."""
    row = chat(system, pairs)
    assert rendered(remembering(name), row) == rendered(Renderer(tokenizer(), source(name)), row)


@pytest.mark.slow
@given(name=st.sampled_from(NAMES), system=st.none() | words, pairs=turns, prompt=st.booleans())
def test_templates_write_what_transformers_writes(name: str, system: str | None, pairs: Any, prompt: bool) -> None:
    conversation = [message.as_dict() for message in chat(system, pairs).messages]
    conversation[-1]["reasoning_content"] = "because"
    variables = {"bos_token": "<s>", "enable_thinking": False}
    try:
        texts, spans = render_jinja_template(
            conversations=[conversation],
            chat_template=source(name),
            return_assistant_tokens_mask=True,
            add_generation_prompt=prompt,
            **variables,
        )
    except TemplateError as error:
        with pytest.raises(RowError, match=re.escape(str(error))):
            Compiled(source(name), variables).write(conversation, prompt=prompt)
        return
    text, found = Compiled(source(name), variables).write(conversation, prompt=prompt)
    said = [] if prompt else [span for span in spans[0] if span[1] > span[0]]  # of a prompt nobody asks for them
    assert (text, found) == (texts[0], said)


def test_tools_reach_the_template() -> None:
    made = Compiled("{{ tools[0].name if tools else 'none' }}{% generation %}{% endgeneration %}", {})
    assert made.write([{"role": "user", "content": "x"}], [{"name": "look"}]) == ("look", [])
    assert made.write([{"role": "user", "content": "x"}]) == ("none", [])
