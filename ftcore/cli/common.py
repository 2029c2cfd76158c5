"""What commands share: the FILE and ``key=value`` arguments, and JSON output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ftcore.utils.files import as_json

F = TypeVar("F", bound=Callable[..., Any])


def file_and_overrides(command: F) -> F:
    """``FILE [key=value ...]``."""
    command = click.argument("overrides", nargs=-1, metavar="[key=value]...")(command)
    return click.argument("file", type=click.Path(path_type=Path))(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def echo_json(value: Any) -> None:
    """Prints one indented JSON document."""
    click.echo(as_json(value), nl=False)


def kind_names() -> list[str]:
    """All kinds of component."""
    from ftcore.api.components import KINDS

    return [kind.kind for kind in KINDS]
