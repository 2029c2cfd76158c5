"""The command line: core commands and those of plugins, each imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from ftcore.errors import FtError, RunError, UsageError
from ftcore.runner.console_log import SafeStream, surviving

COMMANDS = {
    "run": "train, evaluate: what the file says",
    "plan": "what a run would do: components, options with their origins, memory",
    "preview": "what would be trained, row by row, without a model",
    "chat": "talk to a model, with or without an adapter",
    "generate": "answers to prompts, from the command line or a file",
    "serve": "an OpenAI-compatible server for a model and its adapters",
    "export": "a model that loads anywhere: adapters merged, template set, for Ollama and llama.cpp too",
    "plugins": "what is installed",
    "options": "what a file may hold",
    "cache": "what is kept between runs: list it, remove it",
    "env": "versions and hardware, for bug reports",
}
"""Core command -> its line in ``ft --help``; the module of the same name holds it as ``command``."""


class Commands(click.Group):
    """Core commands, then plugins' (``ft_commands``); a name that two plugins offer needs its distribution."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which they are listed."""
        return [*COMMANDS, *sorted(_plugin_commands())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command."""
        if cmd_name in COMMANDS:
            return _import(f"ftcore.cli.{cmd_name}:command")
        found = _plugin_commands()
        if cmd_name in found:
            return _import(found[cmd_name])
        clashing = [name for name in found if name.partition(":")[2] == cmd_name]
        if clashing:
            raise UsageError(f"command {cmd_name!r} is offered more than once; write {' or '.join(clashing)}")
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        if plugins := _plugin_commands():
            with formatter.section("Commands of plugins"):
                formatter.write_dl(sorted(plugins.items()))


def _plugin_commands() -> dict[str, str]:
    """Name -> ``module:attribute``; a name that is taken or offered twice is listed as ``distribution:name``."""
    from ftcore.api.registry import load

    commands: dict[str, str] = {}
    for name, offers in load().commands().items():
        for plugin, target in offers:
            unique = len(offers) == 1 and name not in COMMANDS
            commands[name if unique else f"{plugin.partition('/')[0]}:{name}"] = target
    return commands


def _import(target: str) -> click.Command:
    module, _, attribute = target.partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ftcore", prog_name="ft")
def group() -> None:
    """Fine-tune language models from one flat YAML file. Everything is a plugin.

    Exit status: 0 done, 1 the run failed, 2 the file or the command line is wrong.
    """


def report(error: FtError) -> None:
    """Shows an error as text on standard error, one line a problem."""
    lines = [str(problem) for problem in error.problems] if isinstance(error, UsageError) else [str(error)]
    for line in lines:
        click.echo(click.style("error: ", fg="red", bold=True) + line, err=True)


def main(arguments: list[str] | None = None) -> Any:
    """The script ``ft``.

    A reader that goes away (``| head -1``) ends a command that only prints, without a word; a run it does not end.
    """
    _occupy_descriptors()
    try:
        return group.main(args=arguments, prog_name="ft")
    except FtError as error:
        with surviving():  # whoever reads standard error may be gone
            report(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is not None or not _output_fails():
            raise
        with surviving():
            report(RunError(f"standard output cannot be written: {error.strerror}"))
        sys.exit(1)


def _occupy_descriptors() -> None:
    """Where ``ft`` was started with standard streams closed, the next file opened would be taken for one of them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one


def _output_fails() -> bool:
    """Whether standard output is what could not be written; what it still holds is dropped then."""
    if not sys.stdout:
        return False
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")  # unbuffered, nothing was left to flush
    except OSError:
        SafeStream(sys.stdout).flush()
        return True
    return False
