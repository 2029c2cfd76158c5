"""The template is held against the tokenizer: what differs, what is missing, what is not taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftcore.api.components import ChatTemplate
from ftcore.config.planner import make_plan
from ftcore.data.preprocessing.template_check import check_template
from ftcore.errors import UsageError
from ftcore.testing import CHATML, tiny_tokenizer

QUIET = "{{ messages[0].content }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"


@pytest.fixture
def found(write_config, with_plugins, hooks, capsys) -> Any:
    """``found(template text, own=..., **values)``: the problems, as ``error`` raises them."""

    def run(
        text: str,
        *,
        own: str | None = CHATML,
        stop: tuple[str, ...] = ("<|im_end|>",),
        tool_dialect: str | None = None,
        **values: Any,
    ) -> list[str]:
        template = ChatTemplate(name="probe", summary="a test's", text=text, stop=stop, tool_dialect=tool_dialect)
        plugins = with_plugins(acme=hooks(ft_chat_templates=lambda: [template]))
        file: Path = write_config(template="probe", template_check="error", **values)
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = own
        plan = make_plan(file, plugins=plugins)
        try:
            check_template(plan, tokenizer)
        except UsageError as error:
            shown = [str(problem).replace(f"{file.parent}/", "") for problem in error.problems]
            check_template(make_plan(file, ["template_check=off"], plugins=plugins), tokenizer)
            assert not capsys.readouterr().err
            check_template(make_plan(file, ["template_check=warn"], plugins=plugins), tokenizer)
            warned = capsys.readouterr().err.replace(f"{file.parent}/", "").splitlines()
            assert warned == [f"warning: {line}" for line in shown]
            return shown
        return []

    return run


def test_the_same_template_is_no_finding(found) -> None:
    assert found(CHATML) == []


def test_without_one_of_its_own_there_is_nothing_to_hold_it_against(found) -> None:
    assert found(CHATML.replace("'user'", "'human'"), own=None) == []


def test_the_first_token_that_differs_is_shown(found) -> None:
    changed = CHATML.replace("message['role'] + '\n'", "message['role'] + ': '")
    assert changed != CHATML
    lines = found(changed)
    assert lines == [
        "run.yaml:4: template probe: the generation prompt is not a prefix of the training text;"
        " prompts at inference would differ from those in training",
        "run.yaml:4: template probe differs from the tokenizer's own: at token 3, after '<|im_start|>user', it renders"
        " ': Hi<|im_end|>\\n', the tokenizer's own '\\nHi<|im_end|>\\n<|im_start|>';"
        " leave template out to use the tokenizer's own, or set template_check: off",
    ]


def test_a_control_token_that_is_not_one_token(found) -> None:
    lines = found(CHATML.replace("<|im_start|>", "<|start_here|>"), own=None)
    assert len(lines) == 1
    assert lines[0].startswith("run.yaml:4: template probe: '<|start_here|>' is ")
    assert lines[0].endswith(" tokens in this vocabulary; choose the template that the model was trained with")


@pytest.mark.parametrize(
    "control",
    [
        "<turn|>",
        "<|turn>",
        "<｜User｜>",
        "〈|EOS|〉",
        "[|user|]",
        "<SPECIAL_11>",
        "<sep>",
        "[SYSTEM_PROMPT]",
        "]~b]",
        "<_bot>",
    ],
)
def test_control_tokens_of_every_style(control: str, found) -> None:
    (line,) = found(CHATML.replace("<|im_start|>", control), own=None)
    assert line.startswith(f"run.yaml:4: template probe: {control!r} is ")


TOOLS = "{% for tool in tools or [] %}{{ tool.function.name }}\n{% endfor %}"


def test_tools_are_tried_where_the_template_has_some(found) -> None:
    """All other probes agree; without ``tool_dialect`` nobody asks."""
    with_tools = TOOLS + CHATML.replace(
        "message['content']", "message['content'] + (message.tool_calls | tojson if message.tool_calls else '')"
    )
    other = with_tools.replace("tool.function.name }}", "tool.function.description }}")
    assert found(with_tools, own=with_tools, tool_dialect="json") == []
    assert found(with_tools, own=other) == []
    (line,) = found(with_tools, own=other, tool_dialect="json")
    assert line.startswith(
        "run.yaml:4: template probe differs from the tokenizer's own for a tool call: at token 1, after '', it"
        " renders 'now"
    )


def test_a_prompt_that_ends_inside_a_token(found) -> None:
    """As ``Assistant: `` does, where the blank belongs to the first word; here it is the role that is cut."""
    cut = CHATML.replace("assistant\n' }}{% endif %}", "assistan' }}{% endif %}")
    assert cut != CHATML
    assert found(cut, own=None) == [
        "run.yaml:4: template probe: the generation prompt ends inside a token of the training text;"
        " answers would start with other tokens than in training; end the prompt before the space"
    ]


def test_a_prompt_that_begins_a_thought(found) -> None:
    """Of a template that takes thoughts, as DeepSeek R1's: answers without one are the matter, not the template."""
    opened = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>' }}{% endif %}")
    thoughts = opened.replace(
        "{% generation %}",
        "{{ '<think>' if message['reasoning_content'] else '' }}{% generation %}"
        "{{ message['reasoning_content'] + '</think>' if message['reasoning_content'] else '' }}",
    )
    assert CHATML != opened != thoughts
    assert found(thoughts, own=None) == [
        "run.yaml:4: template probe: the generation prompt opens a reasoning block, which answers without reasoning"
        " lack; add reasoning to the answers, or set enable_thinking: false if the template supports it"
    ]
    assert found(opened, own=None) == [
        "run.yaml:4: template probe: the generation prompt is not a prefix of the training text;"
        " prompts at inference would differ from those in training"
    ]


def test_a_stop_token_that_is_not_trained(found) -> None:
    outside = CHATML.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    assert outside != CHATML
    assert found(outside, own=None) == [
        "run.yaml:4: template probe: no stop token is trained at the end of an answer;"
        " generation will only end at max_new_tokens"
    ]
