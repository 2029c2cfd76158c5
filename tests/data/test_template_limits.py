"""Templates of strangers: one that loops, recurses or doubles is stopped with its name, and others are as they were."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from ftcore.data.chat_template import limits
from ftcore.data.chat_template.jinja_env import Compiled
from ftcore.errors import RowError, UsageError

ROOT = next(folder for folder in Path(__file__).parents if (folder / "benchmarks").is_dir())
sys.path.insert(0, str(ROOT / "benchmarks"))
from template_writers import writers  # noqa: E402

ROW = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "a b"}]
SMALL = 200_000
HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "two macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "caller": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 17
    + "aaaaaaaaa"
    + "{% endcall %}" * 17,
    "doubled set": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubled plus": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubled block": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set x %}{{ n.s }}{{ n.s }}{% endset %}"
    "{% set n.s = x %}{% endfor %}",
    "doubled format": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = '%s%s' % (n.s, n.s) %}"
    "{% endfor %}",
    "doubled method": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = '{0}{0}'.format(n.s) %}"
    "{% endfor %}",
    "doubled join": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = [n.s, n.s]|join %}{% endfor %}",
    "doubled replace": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s|replace('a', 'aa') %}"
    "{% endfor %}",
    "doubled list": "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "nested list": "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
    "{{ n.s|tojson }}",
    "nested dict": "{% set n = namespace(s=1) %}{% for i in range(99) %}{% set n.s = {'a': n.s, 'b': n.s} %}"
    "{% endfor %}{{ n.s }}",
    "nested call": "{% set n = namespace(s=1) %}{% for i in range(99) %}{% set n.s = dict(a=n.s, b=n.s) %}{% endfor %}"
    "{{ n.s }}",
    "doubled argument": "{% macro f(s) %}{{ f(s ~ s) }}{% endmacro %}{{ f('aaaaaaaaaaaaaaaa') }}",
    "doubled namespace": "{% macro f(n) %}{{ f(namespace(s=n.s ~ n.s)) }}{% endmacro %}{{ f(namespace(s='aaaa')) }}",
    "doubled macro": "{% macro f(s) %}{{ s }}{{ s }}{% endmacro %}" + "{{ " + "f(" * 60 + "'a'" + ")" * 60 + " }}",
    "doubled filters": "{{ 'a'" + "|replace('a', 'aa')" * 60 + " }}",
    "doubled methods": "{{ 'a'" + ".replace('a', 'aa')" * 60 + " }}",
    "escaped": "{{ '%'" + "|urlencode|replace('25', '%%%')" * 60 + " }}",
    "output": "{% for a in range(99999) %}{% for b in range(99) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}"
    "{% endfor %}",
    "buffer": "{% set x %}{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endset %}",
    "buffered words": "{% set x %}{% for a in range(99999) %}" + "a" * 999 + "{% endfor %}{% endset %}",
    "macro's words": "{% macro f() %}{% for a in range(99999) %}" + "a" * 999 + "{% endfor %}{% endmacro %}{{ f() }}",
    "generation": "{% generation %}{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endgeneration %}",
    "constant times": "{{ 'a' * 9999999999 }}",
    "constant list": "{{ [1] * 9999999999 }}",
    "times": "{% set n = 10 ** 10 %}{{ messages[0].content * n }}",
    "power": "{{ 10 ** 9999999 }}",
    "set power": "{% set n = 2 ** (10 ** 9) %}",
    "number": "{% set n = namespace(s=7) %}{% for i in range(99) %}{% set n.s = n.s * n.s %}{% endfor %}",
    "width": "{{ '%9999999999d' % 1 }}",
    "star": "{{ '%*d' % (9999999999, 1) }}",
    "format width": "{{ '{:9999999999}'.format(1) }}",
    "format filter": "{{ '%9999999999d'|format(1) }}",
    "center": "{{ 'a'|center(9999999999) }}",
    "center method": "{{ 'a'.center(9999999999) }}",
    "ljust": "{{ 'a'.ljust(9999999999) }}",
    "zfill": "{{ 'a'.zfill(9999999999) }}",
    "tabs": "{{ '\t'.expandtabs(9999999999) }}",
    "tabs by name": "{{ '\t'.expandtabs(tabsize=9999999999) }}",
    "many tabs": "{{ ('\t' * 999).expandtabs(99999) }}",
    "indent": "{{ ('\n' * 999)|indent(99999) }}",
    "indented json": "{{ range(999)|list|tojson(indent=99999) }}",
    "long indent": "{{ range(9999)|list|tojson(indent=' ' * 99999) }}",
    "batch": "{{ 'a'|batch(9999999999, 'b')|list }}",
    "slice": "{{ 'a'|slice(9999999999)|list }}",
    "replace nothing": "{{ ('a' * 99999)|replace('', 'b' * 99999) }}",
    "replace method": "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "join method": "{{ ('a' * 99999).join('b' * 99999) }}",
    "join filter": "{{ ('b' * 99999)|list|join('a' * 99999) }}",
    "mapped": "{% set x = range(99999)|map('string')|map('replace', '', 'b' * 9999)|list %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "deep loops": "{% for a in [1] %}" * 300 + "{% endfor %}" * 300,
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that are reached in a moment."""
    monkeypatch.setattr(limits, "STEPS", 20_000)
    monkeypatch.setattr(limits, "CHARACTERS", SMALL)
    monkeypatch.setattr(limits, "SECONDS", 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_does_not_end_is_stopped(quick: None, name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError) as stopped:
        Compiled(HOSTILE[name], {}, "template 'acme'", "run.yaml:3").write(ROW)
    (problem,) = stopped.value.problems
    assert (problem.where, problem.hint) == ("run.yaml:3", "choose another template")
    assert problem.message.startswith(("template 'acme' was stopped: ", "template 'acme' is not a valid template: "))
    assert "\n" not in problem.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.slow
def test_the_bounds_as_they_are() -> None:
    for name in ("doubled set", "nested list", "output"):
        with pytest.raises(UsageError, match=r"writes more than 4,000,000 characters for one conversation"):
            Compiled(HOSTILE[name], {}).write(ROW)


@pytest.mark.slow
def test_the_bounds_on_time_as_they_are() -> None:
    with pytest.raises(UsageError, match=r"takes more than (5,000,000 steps|20 seconds) for one conversation"):
        Compiled(HOSTILE["loops"], {}).write(ROW)


def test_what_is_long_because_the_row_is_long_is_no_fault(quick: None) -> None:
    """The bound is a multiple of the conversation."""
    source = "{% for m in messages %}{% set x %}{{ m.content ~ m['content'] }}{% endset %}{{ x }}{% endfor %}"
    text, _ = Compiled(source, {}).write([{"role": "user", "content": "ab" * SMALL}])
    assert text == "ab" * 2 * SMALL
    with pytest.raises(UsageError, match="writes more than 25,60"):
        Compiled(source.replace("~ m['content']", "* 99"), {}).write([{"role": "user", "content": "ab" * SMALL}])


def test_a_stopped_template_can_be_used_again(quick: None) -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content * m.n }}{% endgeneration %}{% endfor %}"
    template = Compiled(source, {})
    for _ in range(2):
        with pytest.raises(UsageError, match="characters"):
            template.write([{"role": "a", "content": "ab", "n": 10**9}])
        assert template.write([{"role": "a", "content": "ab", "n": 2}]) == ("abab", [(0, 4)])


def test_a_row_that_nests_too_deep_is_the_rows_fault() -> None:
    deep: Any = 1
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(RowError, match="the row is nested more than 100 levels deep"):
        Compiled("{{ tools|tojson }}", {}).write(ROW, [{"function": deep}])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ 1 / 0 }}", "template 'acme' fails on the conversation: ZeroDivisionError: division by zero"),
        ("{{ [].index(3) }}", "template 'acme' fails on the conversation: ValueError: 3 is not in list"),
        ("{{ raise_exception('no') }}", "the chat template refuses the conversation: no"),
    ],
)
def test_what_a_template_raises_is_the_rows_fault(source: str, reason: str) -> None:
    with pytest.raises(RowError) as refused:
        Compiled(source, {}, "template 'acme'").write(ROW)
    assert refused.value.reason == reason


def test_checks_change_nothing() -> None:
    """Each kind of node that is wrapped, against transformers' own."""
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (
        "{%- macro f(a, b=2) %}{{ a ~ b }}{{ caller() if caller }}{% endmacro -%}"
        "{%- set ns = namespace(n=0, l=[], t='x') -%}"
        "{%- for m in messages if m.role != 'system' -%}"
        "{%- set ns.n = ns.n + 1 -%}{%- set ns.l = ns.l + [m.role, loop.index0 % 2, 7 % 4, 2 ** 3, 3 * 'a'] -%}"
        "{%- set x %}{{ m.content }}|{{ ns.n * 2 }}{% endset -%}{%- set a, b = (1, m.content) -%}"
        "{{- x|replace('|', '/')|trim ~ '%s-%d' % (b, 3) ~ 'a{}'.format(a) -}}"
        "{%- if m.role == 'assistant' -%}{% generation %}{{ m['content'] + '</s>' }}{% endgeneration %}{%- endif -%}"
        "{% call f(m.role, b=[1, (2, m.role)]) %}c{{ loop.last }}{% endcall %}{% filter upper %}q{{ b }}{% endfilter %}"
        "{%- endfor -%}{% block z %}z{{ messages|length }}{% endblock %}"
        "{{ ns.l }}{{ ns.l|tojson(indent=2) }}{{ {'a': messages, 'b': 1}|tojson }}{{ [1, 2, 3]|batch(2)|list }}"
        "{{ messages|map(attribute='role')|join(',') }}{{ ['b', 'a']|sort|join }}{{ 'a\nb'|indent(3) }}"
        "{% for a in [[1, [2]], 3] recursive %}{{ loop(a) if a is iterable else a }},{% endfor %}"
        "{{ 'x'.join(['a', 'b']) }}{{ 'a'|center(5) }}"
    )
    rows = [{"role": "system", "content": "s"}, *ROW, {"role": "user", "content": " ü {% x %} "}, ROW[1]]
    (text,), spans = render_jinja_template([rows], chat_template=source, return_assistant_tokens_mask=True)
    assert Compiled(source, {}).write(rows) == (text, spans[0])


def test_checks_call_at_most_as_much_again() -> None:
    """Functions that are called for a conversation with ChatML, without copies of values."""
    calls = []
    for write in writers(4):
        write()
        seen: list[str] = []
        sys.setprofile(lambda frame, event, argument, seen=seen: seen.append(event))
        try:
            write()
        finally:
            sys.setprofile(None)
        calls.append(sum(event in ("call", "c_call") for event in seen))
    with_checks, without = calls
    assert with_checks < 3 * without


@pytest.mark.parametrize("command", ["plan", "preview", "run"])
@pytest.mark.parametrize("name", ["constant times", "doubled set", "deep", "macro"])
def test_commands_name_the_template(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    from ftcore.cli import main

    rows, template, file = tmp_path / "rows.json", tmp_path / "acme.jinja", tmp_path / "run.yaml"
    rows.write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    template.write_text(HOSTILE[name] + "{% for m in messages %}{{ m.content }}{% endfor %}")
    values = {
        "model_name_or_path": str(tiny_model_dir),
        "dataset": str(rows),
        "template": str(template),
        "do_train": True,
    }
    values |= {"output_dir": str(tmp_path / "out"), "max_steps": 1}
    file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    with pytest.raises(SystemExit) as ended:
        main([command, str(file)])
    _, err = capsys.readouterr()
    if command == "plan" and name != "deep":  # a plan does not render
        assert not ended.value.code
        return
    assert ended.value.code == 2
    assert "Traceback" not in err
    name_ = "acme.jinja"
    (line,) = [line for line in err.splitlines() if name_ in line]
    assert ("was stopped" in line) != (name == "deep")
