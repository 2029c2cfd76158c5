"""ft chat, piped: whole outputs, on a random model whose answers the engine's own tests hold."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from ftcore.api.inference_types import Prompt
from ftcore.api.samples import Message
from ftcore.cli.chat import HELP, command, turns
from ftcore.inference.answers import collect
from ftcore.inference.target import find_target

GREEDY = ("do_sample=false", "max_new_tokens=8")
CUT = " [max_new_tokens]"


@pytest.fixture
def chat(tiny_model_dir: Path) -> Callable[..., Result]:
    """``chat("line", ...)``: what is printed for these lines."""

    def run(*lines: str, words: tuple[str, ...] = GREEDY, status: int = 0) -> Result:
        arguments = ["--model", str(tiny_model_dir), *words]
        result = CliRunner().invoke(command, arguments, input="".join(f"{line}\n" for line in lines))
        assert result.exit_code == status, result.output
        assert result.exception is None
        return result

    return run


@pytest.fixture(scope="module")
def answer(tiny_model_dir: Path) -> Callable[..., str]:
    """``answer("user", "assistant", ..., "user")``: what the model says then."""
    generator = find_target(None, model=str(tiny_model_dir), overrides=GREEDY).load()

    def run(*texts: str, system: str | None = None, **settings: Any) -> str:
        roles: tuple[Any, ...] = ("user", "assistant")
        head = (Message("system", system),) if system is not None else ()
        messages = (*head, *(Message(roles[place % 2], text) for place, text in enumerate(texts)))
        return collect(generator.stream([Prompt(messages, settings=settings)]), 1)[0].text

    return run


def test_answers_see_what_was_said_before(chat: Any, answer: Any) -> None:
    first = answer("hello")
    second = answer("hello", first, "and?")
    assert second != answer("and?")
    result = chat("hello", "", "and?")
    assert result.stdout == f"{first}\n{second}\n"
    assert result.stderr == CUT * 2


def test_lines_are_put_together(chat: Any, answer: Any) -> None:
    text = "one\ntwo"
    expected = f"{answer(text)}\n"
    assert chat("one\\", "two").stdout == expected
    assert chat('"""', "one", "two", '"""').stdout == expected


def test_system_and_clear_begin_anew(chat: Any, answer: Any) -> None:
    plain, brief = answer("hello"), answer("hello", system="be brief")
    assert plain != brief
    lines = ("hello", "/system be brief", "hello", "/clear", "hello", "/system", "hello")
    assert chat(*lines).stdout == f"{plain}\n{brief}\n{brief}\n{plain}\n"
    assert chat("hello", words=(*GREEDY, "--system", "be brief")).stdout == f"{brief}\n"


def test_save_writes_a_row_of_the_messages_format_once(chat: Any, answer: Any, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    result = chat("/system be brief", "hello", f"/save {file}", f"/save {file}", "/save", f"/save {tmp_path}/no/x")
    said = answer("hello", system="be brief")
    assert json.loads(file.read_text()) == {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": said},
        ]
    }
    assert result.stderr == (
        f"{CUT}written to {file}\n"
        f"error: {file} exists already; write another name\n"
        "error: /save needs a file name\n"
        f"error: {tmp_path}/no/x cannot be written: No such file or directory\n"
    )


def test_exit_help_and_what_is_no_command(chat: Any) -> None:
    result = chat("/help", "/bye", "/exit", "hello")
    assert result.stdout == HELP + "\n"
    assert result.stderr == "error: there is no command /bye; /help lists the commands\n"


def test_a_turn_that_cannot_be_answered_is_not_kept(chat: Any, answer: Any) -> None:
    result = chat("dog " * 600, "hello")
    assert result.stdout == answer("hello") + "\n"
    assert result.stderr.startswith("error: the prompt has ")
    assert result.stderr.endswith(f" tokens, the model's longest sequence is 512\n{CUT}")


def test_a_seed_repeats_the_talk(chat: Any) -> None:
    words = ("temperature=1.5", "max_new_tokens=12", "--seed", "5")
    once = chat("hello", "hello", words=words).stdout
    assert chat("hello", "hello", words=words).stdout == once
    assert chat("hello", "hello", words=(*words[:3], "6")).stdout != once


def test_no_model_is_named() -> None:
    from ftcore.errors import UsageError

    result = CliRunner().invoke(command, ["top_k=3"])
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == "no model is given; write a training file, --model or --adapter"


def reader(lines: list[str | type[BaseException]]) -> Callable[[str], str]:
    """Reads these lines, or raises."""
    rest = iter(lines)

    def read(_: str) -> str:
        line = next(rest, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


@given(st.lists(st.text(st.characters(exclude_characters="\\\r\n", exclude_categories=["Cs"]), max_size=8), min_size=1))
def test_any_text_can_be_said(lines: list[str]) -> None:
    continued = [*(line + "\\" for line in lines[:-1]), lines[-1]]
    if lines[0].strip() != '"""' or len(lines) > 1:
        assert list(turns(reader([*continued]))) == ["\n".join(lines)]
    if all(line.strip() != '"""' for line in lines):
        assert list(turns(reader(['"""', *lines, '"""', "next"]))) == ["\n".join(lines), "next"]
        assert list(turns(reader(['"""', *lines]))) == ["\n".join(lines)]


def test_an_interrupt_drops_what_was_begun() -> None:
    stop = KeyboardInterrupt
    assert list(turns(reader([stop, "a\\", stop, "b", '"""', "c", stop, stop, "d"]))) == ["b", "d"]


def test_what_begins_with_a_slash_can_be_said(chat: Any, answer: Any) -> None:
    assert chat(" /etc").stdout == answer(" /etc") + "\n"
    assert chat('"""', "/exit", "now", '"""').stdout == answer("/exit\nnow") + "\n"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_on_a_terminal(tiny_model_dir: Path, answer: Any, tmp_path: Path) -> None:
    """One session on a pseudo-terminal: what is typed, what is shown, what is kept."""
    script = Path(__file__).with_name("chat_terminal.py")
    # an answer of 400 tokens took 0.25 s, and could end before it was stopped: the Ctrl-C then dropped the next line
    long = tmp_path / "long"
    shutil.copytree(tiny_model_dir, long)
    config = json.loads((long / "config.json").read_text(encoding="utf-8"))
    (long / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 20_000}), encoding="utf-8")
    words = [sys.executable, str(script), str(tiny_model_dir), str(long), str(tmp_path)]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    shown = json.loads(ran.stdout)
    first = answer("hello")
    assert shown["hello"] == f"hello\n{first}{CUT}\n> "
    assert shown["again"] == f"hello\n{answer('hello', first, 'hello')}{CUT}\n> "  # brought back by the arrow key
    assert shown["system"] == "/system be brief\nsystem message set, new conversation started\n> "
    assert shown["lines"] == f"one\\\n. two\n{answer(chr(10).join(('one', 'two')), system='be brief')}{CUT}\n> "
    assert shown["block begun"] == '"""\n. '
    assert shown["block dropped"] == "\nCtrl-D or /exit leaves\n> "
    assert shown["paste"] == f"one^Jtwo\n{answer(chr(10).join(('one', 'two')))}{CUT}\n> "
    assert shown["clear"] == "/clear\nnew conversation started\n> "
    assert shown["end"] == "\n"
    assert shown["status"] == 0
    # an answer of 8,000 tokens was stopped, what had been said stays, and the talk went on
    stopped = json.loads((tmp_path / "stopped.jsonl").read_text(encoding="utf-8"))["messages"]
    assert [turn["role"] for turn in stopped] == ["user", "assistant", "user", "assistant"]
    said, begun = stopped[1]["content"], answer("hello", max_new_tokens=400)
    assert begun.startswith(said) or said.startswith(begun)
    assert 0 < len(said) < 8 * len(begun)
    assert stopped[3]["content"]
