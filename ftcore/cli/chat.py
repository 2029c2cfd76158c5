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
"""Prompts of a turn's first line, and of those that belong to it."""
HELP = """\
/system TEXT   set the system message (none: TEXT left out), and begin anew
/clear         begin anew
/save FILE     write the conversation as one JSON line, in the messages format
/help          this
/exit          leave; so does the end of input
A backslash at the end of a line goes on in the next; so does everything between two lines of \"\"\".
Ctrl-C stops an answer, what was said of it stays; at the prompt it drops what was typed. Arrow keys bring back lines.
A space before a slash makes it text."""


@click.command(name="chat")
@names_a_model
@click.option("--system", metavar="TEXT", help="System message; unset, the template's own.")
@click.option("--seed", metavar="N", type=click.IntRange(0), help="Makes answers repeatable.")
def command(words: ModelArguments, system: str | None, seed: int | None) -> None:
    """Talk to a model, with or without an adapter.

    FILE is a training file: then the talk is with what its run left, else with its base model. The chat template and
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
    """A conversation that goes on.

    Args:
        generator: answers.
        system: system message, None for the template's own.
        seed: the n-th answer is sampled with ``seed + n``.
        tells: whether a command that leaves nothing to see is confirmed.
    """

    def __init__(self, generator: Any, system: str | None, seed: int, *, tells: bool = False) -> None:
        self.generator, self.seed, self.tells, self.answers = generator, seed, tells, 0
        self.messages: tuple[Message, ...] = system_messages(system)

    def take(self, text: str) -> bool:
        """One turn or command; false when it was the last."""
        try:
            if text.startswith("/") and "\n" not in text:
                return self._obey(text)
            if text.strip():
                self._answer(text)
        except KeyboardInterrupt:  # just before or after an answer
            click.echo()
        except UsageError as error:
            for problem in error.problems:
                click.echo(click.style("error: ", fg="red", bold=True) + str(problem), err=True)
        return True

    def _obey(self, text: str) -> bool:
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name == "/exit":
            return False
        if name == "/system":
            self.messages = system_messages(rest or None)
            self._tell(f"system message {'set' if rest else 'removed'}, conversation begun anew")
        elif name == "/clear":
            self.messages = tuple(message for message in self.messages if message.role == "system")
            self._tell("conversation begun anew")
        elif name == "/save":
            self._save(rest)
        elif name == "/help":
            click.echo(HELP)
        else:
            raise UsageError(Problem(f"there is no command {name}", hint="/help shows them"))
        return True

    def _tell(self, text: str) -> None:
        if self.tells:
            click.secho(text, dim=True, err=True)

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs a file's name")
        line = json.dumps({"messages": [message.as_dict() for message in self.messages]}, ensure_ascii=False)
        write_new(Path(name).expanduser(), line + "\n")
        click.echo(f"written to {name}", err=True)

    def _answer(self, text: str) -> None:
        """Streams the answer; Ctrl-C stops it, and what was said is kept, if anything was."""
        from ftcore.api.inference_types import Prompt
        from ftcore.api.samples import Message

        messages = (*self.messages, Message("user", text))
        stream = self.generator.stream([Prompt(messages, seed=self.seed + self.answers)])
        said, stopped = "", False
        try:
            for chunk in stream:
                click.echo(chunk.text, nl=False)
                said += chunk.text
                if chunk.finish == "error":
                    raise RunError(chunk.error)
                if chunk.finish == "length":
                    click.echo(click.style(" [max_new_tokens]", dim=True), nl=False, err=True)
        except KeyboardInterrupt:
            stream.close()
            stopped = True
        click.echo()
        if stopped and not said:
            return
        self.messages, self.answers = (*messages, Message("assistant", said)), self.answers + 1


def write_new(file: Path, text: str) -> None:
    """Writes a file that must not exist.

    Raises:
        UsageError: when it does, or cannot be written.
    """
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageError(Problem(f"{file} exists", hint="write another name")) from None
    except OSError as error:
        raise UsageError(Problem(f"{file} cannot be written: {error.strerror}")) from error


def turns(read: Callable[[str], str]) -> Iterator[str]:
    r"""Lines put together: one that ends in a backslash goes on; a block stands between two lines of \"\"\".

    Args:
        read: given a prompt, the next line; ``EOFError`` ends, ``KeyboardInterrupt`` drops what was begun.
    """
    while True:
        try:
            yield _turn(read)
        except EOFError:
            return
        except KeyboardInterrupt:
            continue


def _turn(read: Callable[[str], str]) -> str:
    """One turn; the end of input ends it where it was begun."""
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
    """A line from a terminal, with the keys of readline."""
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
