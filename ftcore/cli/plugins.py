"""``ft plugins list`` and ``ft plugins show``."""

from __future__ import annotations

from typing import Any

import click

from ftcore.api.components import KINDS
from ftcore.api.plan import Listed, RegisteredComponent
from ftcore.api.registry import Plugins, load
from ftcore.cli.common import echo_json, json_option, kind_names
from ftcore.config.binding import option_info, owner_of
from ftcore.errors import Problem, UsageError
from ftcore.utils.suggestions import did_you_mean


@click.group(name="plugins")
def command() -> None:
    """Lists installed plugins and their components."""


@command.command(name="list")
@click.option("--kind", type=click.Choice(kind_names()), help="List only this kind of component.")
@json_option
def list_(kind: str | None, as_json: bool) -> None:
    """Lists all components with their distribution, and plugins that are broken or disabled."""
    found = [row for row in rows(load()) if kind in (None, row["kind"])]
    if as_json:
        echo_json(found)
        return
    for title in dict.fromkeys(row["kind"] for row in found):
        click.secho(f"\n{title.replace('_', ' ')}", bold=True)
        for row in (row for row in found if row["kind"] == title):
            status = "" if row["status"] == "ok" else click.style(f"  [{row['status']}]", fg="red")
            source = click.style(f"({row['distribution']} {row['version']})", dim=True)
            click.echo(f"  {row['name']:<18} {row['summary']} {source}{status}")


@command.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Shows one component or plugin in full. NAME is a name, an alias or a full name."""
    plugins = load()
    shown = [detail(offer, plugins) for offer in plugins.offers if name in names_of(offer)]
    shown += [plugin_row(listed) for listed in plugins.listed if name in (listed.id, listed.id.partition("/")[2])]
    if not shown:
        known = sorted(
            {known for offer in plugins.offers for known in names_of(offer)} | {p.id for p in plugins.listed}
        )
        hint = did_you_mean(name, known, "ft plugins list shows all of them")
        raise UsageError(Problem(f"there is no component or plugin {name!r}", "", hint))
    if as_json:
        echo_json(shown)
        return
    for row in shown:
        _print(row)


def names_of(offer: RegisteredComponent[Any]) -> tuple[str, ...]:
    """All names that select a component."""
    return (offer.full_name, offer.component.name, *offer.component.aliases)


def rows(plugins: Plugins) -> list[dict[str, Any]]:
    """Components, with name clashes as status; then plugins that are broken, disabled, or without components."""
    offering = {offer.plugin for offer in plugins.offers}
    return [component_row(offer, plugins) for offer in plugins.offers] + [
        plugin_row(plugin) for plugin in plugins.listed if plugin.status != "ok" or plugin.id not in offering
    ]


def plugin_row(plugin: Listed) -> dict[str, Any]:
    """One plugin for the list."""
    return {
        "kind": "plugin",
        "name": plugin.id.partition("/")[2],
        "full_name": plugin.id,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "status": plugin.status,
        "summary": "a plugin's hooks",
    }


def component_row(offer: RegisteredComponent[Any], plugins: Plugins) -> dict[str, Any]:
    """One component for the list."""
    component = offer.component
    kind = next(kind for kind in KINDS if isinstance(component, kind))
    names = {component.name, *component.aliases}
    clashing = sorted(
        other.full_name for other in plugins.of(kind) if other is not offer and names.intersection(names_of(other))
    )
    return {
        "kind": component.kind,
        "name": component.name,
        "full_name": offer.full_name,
        "distribution": offer.distribution,
        "version": offer.version,
        "status": f"name also registered by {', '.join(clashing)}: write the full name" if clashing else "ok",
        "summary": component.summary,
        "aliases": list(component.aliases),
        "default": component.default,
    }


def detail(offer: RegisteredComponent[Any], plugins: Plugins) -> dict[str, Any]:
    """One component in full, with its options."""
    component = offer.component
    owner = owner_of(component.kind, component.name)
    options = [option_info(name, owner, info) for name, info in component.Options.model_fields.items()]
    return component_row(offer, plugins) | {
        "plugin": offer.plugin,
        "selected_by": component.option,
        "options": [
            {"name": option.name, "type": option.type, "default": option.default, "help": option.help}
            for option in options
        ],
    }


def _print(row: dict[str, Any]) -> None:
    click.secho(f"{row['kind'].replace('_', ' ')} {row['name']}", bold=True, nl=False)
    click.echo(f"  {row['full_name']} {row['version']}  [{row['status']}]\n  {row['summary']}")
    if row.get("aliases"):
        click.echo(f"  also: {', '.join(row['aliases'])}")
    for option in row.get("options", ()):
        click.echo(f"  {option['name']}: {option['type']} = {option['default']}\n      {option['help']}")
