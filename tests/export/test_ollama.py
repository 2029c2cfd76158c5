"""Modelfiles: Go templates out of chat templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from ftcore.api.components import ChatTemplate
from ftcore.api.registry import Plugins
from ftcore.api.samples import Message
from ftcore.data.chat_template.renderer import Renderer
from ftcore.errors import UsageError
from ftcore.export.ollama import Layout, find_layout
from ftcore.testing import tiny_tokenizer


def ollama(template: str, messages: Sequence[Message]) -> str:
    """A small Go: what Ollama makes of our templates and no others."""
    literal = re.compile(r'\{\{ "(.*?)" \}\}')

    def plain(text: str) -> str:
        return literal.sub(lambda found: found[1].replace('\\"', '"'), text)

    head, _, rest = template.partition("{{ range .Messages }}")
    match = re.fullmatch(
        r"\{\{ if \.System \}\}(.*)\{\{ \.System \}\}(.*?)(?:\{\{ else \}\}(.*))?\{\{ end \}\}", head, re.S
    )
    assert match
    user = re.match(r'\{\{ if eq \.Role "user" \}\}(.*)\{\{ \.Content \}\}(.*)\{\{ else if', rest, re.S)
    answer = re.search(r'"assistant" \}\}\{\{ \.Content \}\}(.*)\{\{ end \}\}\{\{ end \}\}$', rest, re.S)
    assert user
    assert answer
    system = [message.content for message in messages if message.role == "system"]
    text = plain(match[1]) + system[0] + plain(match[2]) if system else plain(match[3] or "")
    for message in messages:
        if message.role == "user":
            text += plain(user[1]) + message.content + plain(user[2])
        elif message.role == "assistant":
            text += message.content + plain(answer[1])
    return text


TALK = (
    Message("system", "Be brief."), Message("user", "1 + 1?"), Message("assistant", "2"), Message("user", "{{ 2 }}?"),
)  # fmt: skip


def renderer_of(template: Any, **options: Any) -> Renderer:
    special = ("<pad>", *dict.fromkeys(re.findall(r"<\|?[\w ]+\|?>|\[/?\w+\]", template.source())), *template.stop)
    tokenizer = tiny_tokenizer(tuple(dict.fromkeys(special)), vocab_size=700)
    tokenizer.bos_token = "<pad>"
    return Renderer(tokenizer, template.source(), stop=template.stop, **options)


def templates(plugins: Plugins) -> list[ChatTemplate]:
    return [offer.component for offer in plugins.of(ChatTemplate)]


def test_chatml(built_in: Plugins) -> None:
    template = next(one for one in templates(built_in) if one.name == "chatml")
    layout = find_layout(renderer_of(template))
    assert layout is not None
    assert layout.go() == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
        '{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        "<|im_start|>assistant\n"
        '{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
    )


@pytest.mark.slow
def test_most_templates_have_a_layout_that_renders_as_they_do(built_in: Plugins) -> None:
    """Every template that has one is rendered by a small Go, and gives what the template gives."""
    with_layout, without = [], []
    for template in templates(built_in):
        try:
            renderer = renderer_of(template)
        except UsageError:
            continue
        layout = find_layout(renderer)
        if layout is None:
            without.append(template.name)
            continue
        with_layout.append(template.name)
        bos = renderer.borders[0]
        for messages in (TALK, TALK[1:], TALK[1:2]):
            expected = renderer.prompt(messages).text.removeprefix(bos)
            assert ollama(layout.go(), messages) == expected, template.name
    assert {"chatml", "llama3", "qwen", "smollm2"} <= {*with_layout}, without
    assert len(with_layout) > len(without)


def test_a_default_system_message_is_written_where_there_is_none(built_in: Plugins) -> None:
    template = next(one for one in templates(built_in) if one.name == "chatml")
    layout = find_layout(renderer_of(template, default_system="Say {{ little }}"))
    assert layout is not None
    assert "{{ else }}" in layout.go()
    assert ollama(layout.go(), TALK[1:2]).startswith(
        "<|im_start|>system\nSay {{ little }}<|im_end|>\n<|im_start|>user\n"
    )


def test_quotes_and_braces_are_escaped() -> None:
    layout = Layout(('"""', "{{"), "", "U:", "A:", "\n")
    assert layout.go().startswith('{{ if .System }}{{ "\\"\\"\\"" }}{{ .System }}{{ "{{" }}{{ end }}')
    assert ollama(layout.go(), TALK[:2]) == '"""Be brief.{{U:1 + 1?A:'


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index }}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    ],
    ids=["numbers", "upper"],
)
def test_a_template_that_does_more_has_no_layout(source: str) -> None:
    assert find_layout(Renderer(tiny_tokenizer(), source)) is None
