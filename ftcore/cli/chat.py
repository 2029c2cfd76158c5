"""``ft chat``: a conversation in the terminal, or piped."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftcore.cli.model_arguments import ModelArguments, names_a_model, system_messages
from ftcore.errors import Problem, RunError, UsageError

if TYPE_CHECKING:
    from ftcore.api.samples import Message

BLOCK = '"""'
FIRST, MORE = "> ", ". "
"""Prompts of the first line of a turn and of its further lines."""
HELP = """\
/system TEXT   set the system message (without TEXT: remove it) and start a new conversation
/clear         start a new conversation
/save FILE     write the conversation as one JSON line, in the messages format
/help          show this help
/exit          leave, as does the end of input
A backslash at the end of a line continues it on the next line. Lines between two lines of \"\"\" are one message.
Ctrl-C stops an answer and keeps its text so far; at the prompt it clears the line. Arrow keys recall earlier lines.
A space before a slash makes the line a message."""


@click.command(name="chat")
@names_a_model
@click.option("--system", metavar="TEXT", help="System message; default: the template's own.")
@click.option("--seed", metavar="N", type=click.IntRange(0), help="Seed, for reproducible answers.")
def command(words: ModelArguments, system: str | None, seed: int | None) -> None:
    """Chats with a model, with or without an adapter.

    FILE is a training file: its trained model is loaded if the run has one, else its base model. The chat template and
    the base model of an adapter come from the run that trained it.
    """
    target = words.find()
    interactive = sys.stdin.isatty()
    if interactive:
        click.echo(f"{target}; /help shows commands", err=True)
    chat = Chat(words.load(target), system, secrets.randbits(31) if seed is None else seed, tells=interactive)
    for text in turns(_typed if interactive else _piped):
        if not chat.take(text):
            break


class Chat:
    """A conversation.

    Args:
        generator: the model's generator.
        system: system message; None for the template's own.
        seed: answer n is sampled with ``seed + n``.
        tells: whether commands without output are confirmed.
    """

    def __init__(self, generator: Any, system: str | None, seed: int, *, tells: bool = False) -> None:
        self.generator, self.seed, self.tells, self.answers = generator, seed, tells, 0
        self.messages: tuple[Message, ...] = system_messages(system)

    def take(self, text: str) -> bool:
        """Handles one turn or command; returns false after the last one."""
        try:
            if text.startswith("/") and "\n" not in text:
                return self._run_command(text)
            if text.strip():
                self._answer(text)
        except KeyboardInterrupt:  # just before or after an answer
            click.echo()
        except UsageError as error:
            for problem in error.problems:
                click.echo(click.style("error: ", fg="red", bold=True) + str(problem), err=True)
        return True

    def _run_command(self, text: str) -> bool:
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name == "/exit":
            return False
        if name == "/system":
            self.messages = system_messages(rest or None)
            self._tell(f"system message {'set' if rest else 'removed'}, new conversation started")
        elif name == "/clear":
            self.messages = tuple(message for message in self.messages if message.role == "system")
            self._tell("new conversation started")
        elif name == "/save":
            self._save(rest)
        elif name == "/help":
            click.echo(HELP)
        else:
            raise UsageError(Problem(f"there is no command {name}", hint="/help lists the commands"))
        return True

    def _tell(self, text: str) -> None:
        if self.tells:
            click.secho(text, dim=True, err=True)

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs a file name")
        line = json.dumps({"messages": [message.as_dict() for message in self.messages]}, ensure_ascii=False)
        write_new(Path(name).expanduser(), line + "\n")
        click.echo(f"written to {name}", err=True)

    def _answer(self, text: str) -> None:
        """Streams the answer; Ctrl-C stops it and keeps its text so far, unless it is empty."""
        from ftcore.api.inference_types import Prompt
        from ftcore.api.samples import Message

        messages = (*self.messages, Message("user", text))
        stream = self.generator.stream([Prompt(messages, seed=self.seed + self.answers)])
        answer, stopped = "", False
        try:
            for chunk in stream:
                click.echo(chunk.text, nl=False)
                answer += chunk.text
                if chunk.finish == "error":
                    raise RunError(chunk.error)
                if chunk.finish == "length":
                    click.echo(click.style(" [max_new_tokens]", dim=True), nl=False, err=True)
        except KeyboardInterrupt:
            stream.close()
            stopped = True
        click.echo()
        if stopped and not answer:
            return
        self.messages, self.answers = (*messages, Message("assistant", answer)), self.answers + 1


def write_new(file: Path, text: str) -> None:
    """Writes a new file.

    Raises:
        UsageError: if the file exists or cannot be written.
    """
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageError(Problem(f"{file} exists already", hint="write another name")) from None
    except OSError as error:
        raise UsageError(Problem(f"{file} cannot be written: {error.strerror}")) from error


def turns(read: Callable[[str], str]) -> Iterator[str]:
    r"""Joins lines to turns: a backslash at the end continues a line; a block is between two lines of \"\"\".

    Args:
        read: reads the next line with a prompt; ``EOFError`` ends, ``KeyboardInterrupt`` drops an unfinished turn.
    """
    while True:
        try:
            yield _turn(read)
        except EOFError:
            return
        except KeyboardInterrupt:
            continue


def _turn(read: Callable[[str], str]) -> str:
    """One turn; the end of input also ends an unfinished turn."""
    line = read(FIRST)
    if line.strip() == BLOCK:
        return "\n".join(_block(read))
    parts = [line]
    while parts[-1].endswith("\\"):
        parts[-1] = parts[-1][:-1]
        parts.append(_more(read) or "")
    return "\n".join(parts)


def _block(read: Callable[[str], str]) -> Iterator[str]:
    while (line := _more(read)) is not None and line.strip() != BLOCK:
        yield line


def _more(read: Callable[[str], str]) -> str | None:
    try:
        return read(MORE)
    except EOFError:
        return None


def _piped(_: str) -> str:
    """The next line of standard input."""
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line.rstrip("\r\n")


def _typed(prompt: str) -> str:
    """A line from a terminal, edited with readline."""
    import readline  # noqa: F401  (input() edits lines with it)

    try:
        return input(prompt)
    except EOFError:
        click.echo()
        raise
    except KeyboardInterrupt:
        click.echo()
        click.secho("Ctrl-D or /exit leaves", dim=True, err=True)
        raise
