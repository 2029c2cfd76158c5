"""``dataset_info.json``: what a user's file says about its datasets, with the line of every mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftcore.errors import Problem, quoted, short
from ftcore.utils.strict_json import RepeatedKeyError, loads
from ftcore.utils.suggestions import did_you_mean

INFO = "dataset_info.json"

_KINDS: dict[str, tuple[type, str]] = {
    "file_name": (str, "a text"),
    "hf_hub_url": (str, "a text"),
    "ms_hub_url": (str, "a text"),
    "om_hub_url": (str, "a text"),
    "script_url": (str, "a text"),
    "cloud_file_name": (str, "a text"),
    "formatting": (str, "a text"),
    "ranking": (bool, "true or false"),
    "subset": (str, "a text"),
    "split": (str, "a text"),
    "folder": (str, "a text"),
    "num_samples": (int, "a number from 1 on"),
    "columns": (dict, "an object of texts"),
    "tags": (dict, "an object of texts"),
}
KEY_TAGS = ("role_tag", "content_tag")
"""Tags that name a key of a turn; the others name a value of its role."""
_SOURCES = ("file_name", "hf_hub_url")
"""Keys that say where the data is; of both the hub is meant."""
_UNREAD = {
    "ms_hub_url": "ModelScope is not read; give hf_hub_url, or download it and give file_name",
    "om_hub_url": "Openmind is not read; give hf_hub_url, or download it and give file_name",
    "script_url": "dataset scripts run foreign code and are not read; give file_name",
    "cloud_file_name": "cloud storage is not read; download it and give file_name",
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """One entry; keys that it leaves out keep these defaults."""

    where: str
    file_name: str = ""
    hub_id: str = ""
    formatting: str | None = None
    ranking: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    num_samples: int | None = None
    problems: tuple[Problem, ...] = ()


def describe(folder: Path) -> tuple[dict[str, Description], list[Problem]]:
    """All entries of the folder's ``dataset_info.json``, and what makes the file unreadable as a whole.

    The problems of one entry stay with it: only a run that uses it is concerned. No file, no entries.
    """
    path = folder / INFO
    if not path.is_file():
        return {}, []
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = loads(text)
    except json.JSONDecodeError as error:
        return {}, [Problem(f"not JSON: {error.msg}", f"{path}:{error.lineno}:{error.colno}")]
    except UnicodeDecodeError as error:
        return {}, [Problem(f"not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}", str(path))]
    except OSError as error:
        return {}, [Problem(f"cannot be read: {error.strerror}", str(path))]
    except RepeatedKeyError as error:
        message = f"{quoted(error.key)} stands twice in one object"
        return {}, [Problem(message, f"{path}:{error.line}:{error.column}", "keep one of the two")]
    except (ValueError, RecursionError) as error:
        return {}, [Problem(f"not JSON: {error}", str(path))]
    if not isinstance(entries, dict):
        return {}, [Problem("must be an object: dataset name -> description", f"{path}:1")]
    return {name: _entry(name, entry, path, text) for name, entry in entries.items()}, []


def _entry(name: str, entry: Any, path: Path, text: str) -> Description:
    line = _line(text, name)
    where = f"{path}:{line}"
    if not isinstance(entry, dict):
        return Description(where=where, problems=(Problem(f"dataset {quoted(name)} must be an object", where),))
    problems = []
    known = any(entry.get(key) for key in _SOURCES)
    for key, value in entry.items():
        if problem := _wrong(name, key, value, f"{path}:{_line(text, key, after=line)}", known):
            problems.append(problem)
    problems += _told_twice(name, entry, path, text, line)
    if not known and not problems:
        problems.append(Problem(f"dataset {quoted(name)} has no source", where, "write file_name or hf_hub_url"))
    if problems:
        return Description(where=where, problems=tuple(problems))
    return Description(where=where, **_values(entry))


def _told_twice(name: str, entry: Mapping[str, Any], path: Path, text: str, line: int) -> Iterator[Problem]:
    """One column for two roles, one key or one role's name for two tags: nobody knows which is meant."""
    for what in ("columns", "tags"):
        given = entry.get(what)
        first: dict[tuple[bool, str], str] = {}
        for role, column in given.items() if isinstance(given, dict) else ():
            if not column or not isinstance(column, str):
                continue
            other = first.setdefault((role in KEY_TAGS, column), role)
            if other != role:
                where = f"{path}:{_line(text, role, after=_line(text, what, after=line))}"
                message = (
                    f"dataset {quoted(name)}: {what} gives {quoted(column)} to {short(other)} and to {short(role)}"
                )
                hint = (
                    f'name another one, or "{short(role)}": "" if there is none'
                    if what == "columns"
                    else "name another one"
                )
                yield Problem(message, where, hint)


def _values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the entry says. Null and, for texts, "" are the same as nothing; a role without a column has the name ""."""
    values = {key: entry[key] for key in Description.__dataclass_fields__ if entry.get(key) not in (None, "")}
    for key in ("columns", "tags"):
        names = {role: name or "" for role, name in (entry.get(key) or {}).items()}
        values[key] = names if key == "columns" else {role: name for role, name in names.items() if name}
    return values | {"hub_id": entry.get("hf_hub_url") or ""}


def _wrong(name: str, key: str, value: Any, where: str, has_source: bool) -> Problem | None:
    if key not in _KINDS:
        hint = did_you_mean(key, _KINDS, f"known: {', '.join(_KINDS)}", most=1)
        return Problem(f"dataset {quoted(name)} has an unknown key {quoted(key)}", where, hint)
    if value in (None, "") or (key in _UNREAD and has_source):
        return None  # a further address of what is read from elsewhere
    if key in _UNREAD:
        return Problem(f"dataset {quoted(name)}: {key} is known, but not supported", where, _UNREAD[key])
    kind, what = _KINDS[key]
    fits = isinstance(value, kind)
    if isinstance(value, dict):
        fits = fits and all(item is None or isinstance(item, str) for item in value.values())
    elif isinstance(value, int) and kind is int:
        fits = value >= 1 and not isinstance(value, bool)
    return None if fits else Problem(f"dataset {quoted(name)}: {key} must be {what}, not {quoted(value)}", where)


def _line(text: str, key: str, *, after: int = 1) -> int:
    """The line on which ``"key":`` stands, from line ``after`` on; ``after`` when it is written with escapes."""
    start = len("".join(text.splitlines(keepends=True)[: after - 1]))
    found = [match.start() for match in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", text)]
    found = [position for position in found if position >= start]
    return text.count("\n", 0, found[0]) + 1 if found else after
