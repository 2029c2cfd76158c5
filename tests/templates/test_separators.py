"""The source that is made of strings, and the user's own: separators and Jinja files, from the plan to the text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from ft_plugins.templates.own_separators import SEPARATORS
from ft_plugins.templates.separators import BOS, EOS, Separators
from ftcore.api.components import ChatTemplate
from ftcore.api.plan import Run
from ftcore.api.registry import Plugins
from ftcore.api.samples import Chat, Message
from ftcore.cli.preview import command
from ftcore.config.planner import make_plan
from ftcore.data.chat_template.renderer import Renderer
from ftcore.errors import UsageError
from ftcore.runner.run import use_template
from ftcore.testing import tiny_tokenizer

Write = Callable[..., Path]
TOKENS = 'user_token: "Human:"\nassistant_token: "Assistant:"\nsystem_token: "System:"\n'
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]


def render(
    source: str, messages: list[dict[str, str]], prompt: bool = False, **variables: Any
) -> tuple[str, list[str]]:
    """Text, and what the model says."""
    texts, spans = render_jinja_template(
        conversations=[messages],
        chat_template=source,
        return_assistant_tokens_mask=True,
        add_generation_prompt=prompt,
        **variables,
    )
    return texts[0], [texts[0][start:end] for start, end in spans[0]]


class TestSource:
    def test_tokens_of_the_tokenizer(self) -> None:
        source = Separators(start=BOS + "\n", user=("U", EOS), answer="A", lead=" ", gap="\n").source()
        assert render(source, CHAT, bos_token="<s>", eos_token="</s>") == (
            "<s>\nUhi</s>A Hello.</s>\n",
            [" Hello.</s>"],
        )
        assert render(source, CHAT, eos_token="</s>")[0] == "\nUhi</s>A Hello.</s>\n"
        with pytest.raises(jinja2.TemplateError, match="eos_token, which the tokenizer does not have"):
            render(source, CHAT)

    def test_system_messages(self) -> None:
        system = [{"role": "system", "content": "S"}, *CHAT[:1]]
        for when, none, empty in (("text", "hi", "hi"), ("given", "hi", "[]hi"), ("always", "[]hi", "[]hi")):
            source = Separators(system=("[", "]"), system_when=when).source()  # type: ignore[arg-type]
            assert render(source, system, eos_token="#")[0] == "[S]hi"
            assert render(source, CHAT[:1], eos_token="#")[0] == none
            assert render(source, [{"role": "system", "content": ""}, *CHAT[:1]], eos_token="#")[0] == empty

    def test_default_system(self) -> None:
        source = Separators(system=("[", "]")).source('It\'s "me".\n你')
        assert render(source, CHAT[:1], eos_token="#")[0] == '[It\'s "me".\n你]hi'
        assert render(source, CHAT[:1], eos_token="#", default_system="")[0] == "hi"
        assert render(source, CHAT[:1], eos_token="#", default_system="X")[0] == "[X]hi"

    def test_system_inside_the_first_turn(self) -> None:
        source = Separators(system=("[", "]"), system_inside=True, user=("U:", "")).source()
        system = {"role": "system", "content": "S"}
        assert render(source, [system, *CHAT, *CHAT[:1]], eos_token="#")[0] == "U:[S]hiHello.#U:hi"
        with pytest.raises(jinja2.TemplateError, match="belongs into the first user turn"):
            render(source, [system, CHAT[1]], eos_token="#")

    def test_earlier_answers_may_just_end(self) -> None:
        source = Separators(user=("U", ""), answer="A", stop="#", earlier_stop="").source()
        assert render(source, [*CHAT, *CHAT]) == ("UhiAHello.UhiAHello.#", ["Hello.", "Hello.#"])
        assert render(source, [*CHAT, CHAT[0]], prompt=True)[0] == "UhiAHello.UhiA"

    def test_other_roles(self) -> None:
        with pytest.raises(jinja2.TemplateError, match="a turn of role 'tool' is nothing that this template can write"):
            render(Separators(stop="").source(), [*CHAT, {"role": "tool", "content": "1"}])

    @given(st.lists(st.text(), min_size=6, max_size=6))
    @example(["%}", "{% raw %}", "{#", "-%}'\"", "{{ eos_token }}}}", "\r\n{{ bos_token }}"])
    def test_any_string_stands_as_it_is(self, strings: list[str]) -> None:
        before, after, header, lead, stop, gap = strings
        source = Separators(user=(before, after), answer=header, lead=lead, stop=stop, gap=gap).source()
        expected = f"{before}hi{after}{header}{lead}Hello.{stop}{gap}"
        assert render(source, CHAT, bos_token=BOS, eos_token=EOS) == (expected, [f"{lead}Hello.{stop}"])


def planned(file: Path, plugins: Plugins, *overrides: str) -> str:
    """The source of the plan's template."""
    plan = make_plan(file, overrides, plugins=plugins)
    assert plan.template
    return plan.template.component.source()


def problems(file: Path, plugins: Plugins) -> list[str]:
    with pytest.raises(UsageError) as error:
        make_plan(file, plugins=plugins)
    return str(error.value).replace(f"{file.parent}/", "").splitlines()


class TestOwnSeparators:
    def test_they_select_their_template(self, write_config: Write, built_in: Plugins) -> None:
        file = write_config(TOKENS, template=...)
        plan = make_plan(file, plugins=built_in)
        assert plan.template
        assert plan.template.full_name == "ftcore:separators"
        assert plan.options["template"].origin.endswith("run.yaml:5")
        assert (plan.options["user_token"].value, plan.options["user_token"].owner) == (
            "Human:",
            "chat template separators",
        )
        system = {"role": "system", "content": "Be brief."}
        source = plan.template.component.source()
        assert render(source, [system, *CHAT, *CHAT], bos_token="<s>", eos_token="</s>") == (
            "<s>System: Be brief.\nHuman: hi\nAssistant: Hello.</s>\nHuman: hi\nAssistant: Hello.</s>\n",
            [" Hello.</s>", " Hello.</s>"],
        )
        assert render(source, CHAT[:1], prompt=True, eos_token="</s>")[0] == "Human: hi\nAssistant:"
        assert SEPARATORS.text == ""

    def test_control_tokens_get_no_blank(self, write_config: Write, built_in: Plugins) -> None:
        file = write_config('user_token: "<|user|>"\nassistant_token: "### Answer:\\n"\n', template=...)
        system = {"role": "system", "content": "S"}
        text, said = render(planned(file, built_in), [system, *CHAT], eos_token="#")
        assert (text, said) == ("S\n<|user|>hi\n### Answer:\nHello.#\n", ["Hello.#"])

    def test_a_named_template_wins(self, write_config: Write, built_in: Plugins) -> None:
        plan = make_plan(write_config(TOKENS), plugins=built_in)
        assert plan.template
        assert plan.template.full_name == "ftcore:chatml"
        assert [line.rpartition("/")[2] for line in plan.ignored] == [
            f"run.yaml:{line}: ignored: {name} is an option of chat template separators, not used here"
            for line, name in ((6, "user_token"), (7, "assistant_token"), (8, "system_token"))
        ]

    @pytest.mark.parametrize(
        ("text", "values", "expected"),
        [
            (
                'user_token: "Human:"\n',
                {},
                ['run.yaml:5: user_token is set, and assistant_token is missing; write assistant_token: "Assistant:"'],
            ),
            (
                'system_token: "System:"\n',
                {},
                [
                    'run.yaml:5: system_token is set, and user_token is missing; write user_token: "Human:"',
                    "run.yaml:5: system_token is set, and assistant_token is missing; write assistant_token:"
                    ' "Assistant:"',
                ],
            ),
            (
                'user_token: ""\nassistant_token: "A"\n',
                {},
                ['run.yaml:5: user_token is empty; write user_token: "Human:"'],
            ),
            (
                "",
                {"template": "separators"},
                [
                    'run.yaml:4: user_token is missing; write user_token: "Human:"',
                    'run.yaml:4: assistant_token is missing; write assistant_token: "Assistant:"',
                ],
            ),
            (
                "user_token: 3\nassistant_token: true\n",
                {},
                [
                    "run.yaml:5: user_token: input should be a valid string, found 3",
                    "run.yaml:6: assistant_token: expected str, found true",
                ],
            ),
        ],
    )
    def test_mistakes(
        self, text: str, values: dict[str, str], expected: list[str], write_config: Write, built_in: Plugins
    ) -> None:
        assert problems(write_config(text, **({"template": ...} | values)), built_in) == expected

    def test_two_plugins_claim_an_option(self, write_config: Write, with_plugins: Any, hooks: Any) -> None:
        other = ChatTemplate(name="acme", summary="-", text="-", selected_by=("user_token",))
        plugins = with_plugins(acme=hooks(ft_chat_templates=lambda: [other]))
        expected = (
            "run.yaml:5: user_token selects more than one chat template: ftcore:separators and acme:acme;"
            " write template: ftcore:separators or acme:acme"
        )
        assert problems(write_config(TOKENS, template=...), plugins)[0] == expected


class TestFiles:
    SOURCE = "{% for m in messages %}{{ m.role + ':' + m.content + eos_token + '\n' }}{% endfor %}"

    def test_a_path(self, write_config: Write, built_in: Plugins, tmp_path: Path) -> None:
        path = tmp_path / "my.jinja"
        path.write_text(self.SOURCE, encoding="utf-8")
        plan = make_plan(write_config(template=str(path)), plugins=built_in)
        assert plan.template
        assert (plan.template.full_name, plan.template.component.source()) == (f"file:{path}", self.SOURCE)
        renderer = Renderer.from_plan(plan, tiny_tokenizer())
        rendered = renderer.render(Chat((Message("user", "hi"), Message("assistant", "Hello."))))
        assert rendered.text == "user:hi<|im_end|>\nassistant:Hello.<|im_end|>\n"

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("", "run.yaml:4: my.jinja is empty; write a Jinja template into it"),
            (
                "{%- for m in messages %}\n{{ m.content }\n{% endfor %}",
                "my.jinja:2: the template has a syntax error: unexpected '}'",
            ),
            (
                "\n\n{% for m in messages %}{% generation %}{{ m.content }}{% endfor %}",
                "my.jinja:3: the template has a syntax error: encountered unknown tag 'endfor'. You probably"
                " made a nesting mistake. Jinja is expecting this tag, but currently looking for 'endgeneration'. The"
                " innermost block that needs to be closed is 'generation'",
            ),
            ("{{ messages | shout }}", "my.jinja:1: the template has a syntax error: no filter named 'shout'"),
            (b"\xff", "run.yaml:4: my.jinja is not UTF-8; save it as UTF-8"),
            (None, "run.yaml:4: there is no template file 'my.jinja'; write a Jinja file, or the name of a template"
             " (ft plugins list)"),
            (..., "run.yaml:4: my.jinja is a folder; write a Jinja file, or the name of a template"
             " (ft plugins list)"),
        ],
    )  # fmt: skip
    def test_mistakes(
        self, content: Any, expected: str, write_config: Write, built_in: Plugins, tmp_path: Path
    ) -> None:
        path = tmp_path / "my.jinja"
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif content is ...:
            path.mkdir()
        elif content:
            path.write_bytes(content)
        assert problems(write_config(template=str(path)), built_in) == [expected]

    def test_a_misspelt_name_is_no_path(self, write_config: Write, built_in: Plugins) -> None:
        (found,) = problems(write_config(template="chatlm"), built_in)
        assert found.startswith("run.yaml:4: unknown chat template 'chatlm'; did you mean")


@pytest.mark.slow
class TestTokens:
    """``bos_token``, ``eos_token``, ``pad_token``: with a tokenizer on disk."""

    @pytest.fixture
    def file(self, write_config: Write, config_dir: Path) -> Callable[..., Path]:
        tiny_tokenizer(("<|endoftext|>", "<|im_start|>", "[PAD]", "<|im_end|>")).save_pretrained(config_dir)
        return write_config

    def test_preview(self, file: Any) -> None:
        file = file(TOKENS + 'bos_token: "<|im_start|>"\neos_token: "<|endoftext|>"\n', template=...)
        result = CliRunner().invoke(command, [str(file), "-n", "1", "--json"])
        assert result.exception is None
        row = json.loads(result.stdout)
        text = "<|im_start|>Human: question 0\nAssistant: answer 0<|endoftext|>\n"
        assert row["text"] == text
        tokenizer = tiny_tokenizer(("<|endoftext|>", "<|im_start|>", "[PAD]", "<|im_end|>"))
        assert row["input_ids"] == tokenizer(text)["input_ids"]
        trained = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(trained) == " answer 0<|endoftext|>"
        assert row["reasons"][len(row["reasons"]) - 2] == "end-of-turn"

    def test_the_saved_tokenizer_renders_the_same(self, file: Any, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        plan = make_plan(file(TOKENS + 'eos_token: "<|im_end|>"\npad_token: "[PAD]"\n', template=...))
        tokenizer = plan.plugins.hook.ft_load_tokenizer(plan=plan)
        use_template(Run(plan=plan, tokenizer=tokenizer))
        tokenizer.save_pretrained(tmp_path / "saved")
        saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert (saved.pad_token, saved.eos_token) == ("[PAD]", "<|im_end|>")
        assert saved.apply_chat_template(CHAT, tokenize=False) == "Human: hi\nAssistant: Hello.<|im_end|>\n"

    def test_unknown_tokens(self, file: Any) -> None:
        plan = make_plan(file('bos_token: "<s>"\neos_token: "</s>"\npad_token: "[PAD]"\n'))
        with pytest.raises(UsageError) as error:
            plan.plugins.hook.ft_load_tokenizer(plan=plan)
        assert str(error.value).replace(f"{Path(plan.file).parent}/", "").splitlines() == [
            "run.yaml:6: bos_token '<s>' is not one token of this model's tokenizer; leave it out to keep None, or"
            " choose a token of its vocabulary",
            "run.yaml:7: eos_token '</s>' is not one token of this model's tokenizer; leave it out to keep"
            " '<|im_end|>', or choose a token of its vocabulary",
        ]


def test_the_page_shows_what_happens(write_config: Write, built_in: Plugins, tmp_path: Path) -> None:
    """docs/own_template.md: its YAML gives the text beside it, and its Jinja file is a template."""
    page = (Path(__file__).parents[2] / "docs" / "own_template.md").read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S)
    (separators, shown, _, jinja) = (text for _, text in blocks)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
    ]
    source = planned(write_config(separators, template=...), built_in)
    text, (said,) = render(source, messages, bos_token="<s>", eos_token="</s>")
    assert text.replace(said, f"[{said}]") == shown
    (tmp_path / "mine.jinja").write_text(jinja, encoding="utf-8")
    source = planned(write_config(template=str(tmp_path / "mine.jinja")), built_in)
    expected = "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello.</s>\n"
    assert render(source, messages, eos_token="</s>") == (expected, ["Hello.</s>"])
