"""The command line: core commands and those of plugins. A command is imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from ftcore.errors import FtError, RunError, UsageError
from ftcore.runner.console_log import SafeStream, surviving

COMMANDS = {
    "run": "train and evaluate as the file says",
    "plan": "show what a run would do: components, options, memory",
    "preview": "show the rows as they would be trained, without a model",
    "chat": "talk to a model, with or without an adapter",
    "generate": "answer prompts from the command line or a file",
    "serve": "serve a model and its adapters to OpenAI clients",
    "export": "write a complete model with merged adapters, also for Ollama and llama.cpp",
    "plugins": "list installed plugins and components",
    "options": "list all options of a training file",
    "cache": "list and remove cached data",
    "env": "show versions and hardware, for bug reports",
}
"""Core command -> its line in ``ft --help``. The module of the same name defines it as ``command``."""


class Commands(click.Group):
    """Core commands, then those of plugins (``ft_commands``); a name that two plugins use needs its distribution."""

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
            raise UsageError(f"command {cmd_name!r} is registered more than once; write {' or '.join(clashing)}")
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        if plugins := _plugin_commands():
            with formatter.section("Commands of plugins"):
                formatter.write_dl(sorted(plugins.items()))


def _plugin_commands() -> dict[str, str]:
    """Name -> ``module:attribute``; a name that clashes is listed as ``distribution:name``."""
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

    Exit status: 0 success, 1 the run failed, 2 the file or the command line is wrong.
    """


def report(error: FtError) -> None:
    """Prints an error on standard error, one line per problem."""
    lines = [str(problem) for problem in error.problems] if isinstance(error, UsageError) else [str(error)]
    for line in lines:
        click.echo(click.style("error: ", fg="red", bold=True) + line, err=True)


def main(arguments: list[str] | None = None) -> Any:
    """The script ``ft``.

    When the reader of its output goes away (``| head -1``), a command that only prints ends silently; a run goes on.
    """
    _occupy_descriptors()
    try:
        return group.main(args=arguments, prog_name="ft")
    except FtError as error:
        with surviving():  # standard error may be closed
            report(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is not None or not _output_fails():
            raise
        with surviving():
            report(RunError(f"standard output cannot be written: {error.strerror}"))
        sys.exit(1)


def _occupy_descriptors() -> None:
    """Opens closed standard streams, so that the next opened file does not get their descriptors."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # open returns the lowest free descriptor, which is this one


def _output_fails() -> bool:
    """Whether writing standard output fails; its buffered text is then dropped."""
    if not sys.stdout:
        return False
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")  # with an unbuffered stream flush has written nothing
    except OSError:
        SafeStream(sys.stdout).flush()
        return True
    return False
