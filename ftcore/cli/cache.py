"""``ft cache list``, ``ft cache prune`` and ``ft cache clear``."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

from ftcore.cli.common import echo_json, json_option
from ftcore.errors import Problem, UsageError
from ftcore.utils.cache_dir import cache_root
from ftcore.utils.cache_pruning import OLD, Kept, Pruned, clear, list_kept, prune
from ftcore.utils.content_store import CACHE_KINDS
from ftcore.utils.units import in_units, parse_duration, parse_size

T = TypeVar("T")


@click.group(name="cache")
def command() -> None:
    """Lists and removes data that ft caches between runs.

    Everything in the cache can be computed again. The cache is $FT_CACHE, else $XDG_CACHE_HOME/ft, else ~/.cache/ft.
    """


@command.command(name="list")
@json_option
def list_(as_json: bool) -> None:
    """Lists all entries: kind, purpose, size, last use and the version that wrote them."""
    found = list_kept()
    if as_json:
        echo_json({"cache": str(cache_root()), "size": _size(found), "entries": [as_dict(kept) for kept in found]})
        return
    click.echo(f"{_entries(found)} in {cache_root()}, {in_units(_size(found))}")
    for name in (*CACHE_KINDS, OLD):
        of_kind = [kept for kept in found if _kind(kept) == name]
        if not of_kind:
            continue
        purpose = CACHE_KINDS[name].purpose if name in CACHE_KINDS else "entries of earlier versions, no longer read"
        click.secho(f"\n{name}: {purpose}", bold=True)
        rows = [(in_units(kept.size), _when(kept.last_used), kept.made_by or "-", _about(kept)) for kept in of_kind]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for size, used, made_by, about in rows:
            click.echo(f"  {size:>{widths[0]}}  {used:<{widths[1]}}  {made_by:<{widths[2]}}  {about}")


@command.command(name="prune")
@click.option("--older-than", metavar="AGE", help="Remove entries not used for this long: 12h, 30d, 8w.")
@click.option(
    "--larger-than", metavar="SIZE", help="Remove entries until the cache has at most this size: 500MB, 20GB."
)
@json_option
def prune_(older_than: str | None, larger_than: str | None, as_json: bool) -> None:
    """Removes entries, least recently used first.

    Always removed: damaged entries, files of killed processes, and entries of earlier versions. Entries in use stay.
    """
    age = None if older_than is None else _read(parse_duration, older_than, "--older-than")
    size = None if larger_than is None else _read(parse_size, larger_than, "--larger-than")
    _report(prune(age, size, now=time.time()), as_json)


@command.command(name="clear")
@click.argument("kind")
@json_option
def clear_(kind: str, as_json: bool) -> None:
    """Removes all entries of KIND, or of all kinds with `all`. Entries in use stay."""
    names = (*CACHE_KINDS, OLD, "all")
    if kind not in names:
        raise UsageError(Problem(f"the cache has no kind {kind!r}", hint=f"write one of {', '.join(names)}"))
    _report(clear(kind), as_json)


def as_dict(kept: Kept) -> dict[str, Any]:
    """An entry for ``--json``: sizes in bytes, times in ISO 8601 with the offset from UTC."""
    return {
        "kind": _kind(kept),
        "purpose": kept.kind.purpose,
        "about": kept.about,
        "size": kept.size,
        "last_used": datetime.fromtimestamp(kept.last_used).astimezone().isoformat(timespec="seconds"),
        "made_by": kept.made_by,
        "in_use": kept.in_use,
        "foreign_files": list(kept.strange),
        "path": str(kept.path),
    }


def _kind(kept: Kept) -> str:
    return OLD if kept.old else kept.kind.name


def _about(kept: Kept) -> str:
    where = kept.path.name if kept.old else ""
    notes = ["in use"] * kept.in_use + [f"holds files that ft did not write: {', '.join(kept.strange)}"] * bool(
        kept.strange
    )
    text = " ".join([where, kept.about]).strip() + (f" ({'; '.join(notes)})" if notes else "")
    return text.encode(errors="replace").decode()  # a file name may hold bytes that are not text


def _report(pruned: Pruned, as_json: bool) -> None:
    if as_json:
        facts: dict[str, Any] = {"cache": str(cache_root()), "freed": pruned.freed}
        facts |= {
            "removed": [as_dict(kept) for kept in pruned.removed],
            "stay": [as_dict(kept) for kept in pruned.stays],
        }
        echo_json(facts)
        return
    for name in (*CACHE_KINDS, OLD):
        removed = [kept for kept in pruned.removed if _kind(kept) == name]
        if removed:
            click.echo(f"{name}: removed {_entries(removed)}, {in_units(_size(removed))}")
    for kept in pruned.stays:
        why = f"holds files that ft did not write: {', '.join(kept.strange)}" if kept.strange else "in use"
        click.echo(f"{_kind(kept)}: {kept.path} stays, {why}")
    click.echo(f"freed {in_units(pruned.freed)} in {cache_root()}")


def _entries(kept: list[Kept]) -> str:
    return f"{len(kept):,} {'entry' if len(kept) == 1 else 'entries'}"


def _size(kept: list[Kept]) -> int:
    return sum(entry.size for entry in kept)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _read(read: Callable[[str], T], text: str, option: str) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise UsageError(Problem(f"{option}: cannot read {text!r}", hint=str(error))) from None
