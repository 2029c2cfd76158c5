"""``ft options``: all options of a training file."""

from __future__ import annotations

from typing import Any

import click

from ftcore.api.registry import Plugins, load
from ftcore.cli.common import echo_json, json_option
from ftcore.cli.plugins import names_of
from ftcore.config.binding import OptionInfo, list_options, owner_of
from ftcore.config.json_schema import json_schema
from ftcore.errors import Problem, UsageError


@click.command(name="options")
@click.argument("what", required=False, metavar="[KIND|NAME|OPTION]")
@click.option("--schema", is_flag=True, help="Print a JSON schema of training files, for editors.")
@json_option
def command(what: str | None, schema: bool, as_json: bool) -> None:
    """Lists options with owner, type, default and help: all, those of a group, kind or component, or one option."""
    plugins = load()
    if schema:
        echo_json(json_schema(plugins))
        return
    options = select(list_options(plugins), what, plugins)
    if as_json:
        echo_json([as_dict(option) for option in options])
        return
    for owner in dict.fromkeys(option.owner for option in options):
        click.secho(f"\n{owner}", bold=True)
        for option in (option for option in options if option.owner == owner):
            default = "" if option.default in (None, ()) else f" = {show(option.default)}"
            click.echo(f"  {click.style(option.name, fg='cyan')}: {option.type}{default}\n      {option.help}")


def select(options: list[OptionInfo], what: str | None, plugins: Plugins) -> list[OptionInfo]:
    """The options of a group, kind or component, or the one option of that name."""
    if what is None:
        return options
    owners = {owner_of(o.component.kind, o.component.name) for o in plugins.offers if what in names_of(o)}
    kind = what.replace("_", " ")
    found = [
        option
        for option in options
        if option.owner in owners or what in (option.owner, option.name) or option.owner.rpartition(" ")[0] == kind
    ]
    if not found and not owners and kind not in {offer.component.kind.replace("_", " ") for offer in plugins.offers}:
        groups = ", ".join(dict.fromkeys(option.owner for option in options))
        raise UsageError(
            Problem(
                f"there is no option, group, kind or component {what!r}", "", f"write an option, or one of: {groups}"
            )
        )
    return found


def as_dict(option: OptionInfo) -> dict[str, Any]:
    """One option for ``--json``."""
    return {
        "name": option.name,
        "owner": option.owner,
        "type": option.type,
        "default": option.default,
        "help": option.help,
    }


def show(value: Any) -> str:
    """A value as written in a YAML file."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
