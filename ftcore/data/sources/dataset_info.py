"""Reads ``dataset_info.json``; every problem has its line."""

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
    "file_name": (str, "a string"),
    "hf_hub_url": (str, "a string"),
    "ms_hub_url": (str, "a string"),
    "om_hub_url": (str, "a string"),
    "script_url": (str, "a string"),
    "cloud_file_name": (str, "a string"),
    "formatting": (str, "a string"),
    "ranking": (bool, "true or false"),
    "subset": (str, "a string"),
    "split": (str, "a string"),
    "folder": (str, "a string"),
    "num_samples": (int, "an integer of at least 1"),
    "columns": (dict, "an object whose values are strings"),
    "tags": (dict, "an object whose values are strings"),
}
KEY_TAGS = ("role_tag", "content_tag")
"""Tags that name a key of a turn; the others name a value of its role."""
_SOURCES = ("file_name", "hf_hub_url")
"""Keys that locate the data; with both, the hub is used."""
_UNSUPPORTED = {
    "ms_hub_url": "ModelScope is not supported; write hf_hub_url, or download the dataset and write file_name",
    "om_hub_url": "Openmind is not supported; write hf_hub_url, or download the dataset and write file_name",
    "script_url": "dataset scripts run third-party code and are not supported; write file_name",
    "cloud_file_name": "cloud storage is not supported; download the file and write file_name",
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """One entry; missing keys have these defaults."""

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
    """All entries of the folder's ``dataset_info.json``, and the problems that make the whole file unreadable.

    The problems of an entry are stored in it, and only a run that uses the entry fails. Without a file there are no
    entries.
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
        message = f"{quoted(error.key)} occurs twice in one object"
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
        if problem := _key_problem(name, key, value, f"{path}:{_line(text, key, after=line)}", known):
            problems.append(problem)
    problems += _assigned_twice(name, entry, path, text, line)
    if not known and not problems:
        problems.append(Problem(f"dataset {quoted(name)} has no source", where, "write file_name or hf_hub_url"))
    if problems:
        return Description(where=where, problems=tuple(problems))
    return Description(where=where, **_values(entry))


def _assigned_twice(name: str, entry: Mapping[str, Any], path: Path, text: str, line: int) -> Iterator[Problem]:
    """Problems of columns, keys and role names that are assigned twice."""
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
                    f"dataset {quoted(name)}: {what} assigns {quoted(column)} to both {short(other)} and {short(role)}"
                )
                hint = (
                    f'write another name, or "{short(role)}": "" if there is no such column'
                    if what == "columns"
                    else "write another name"
                )
                yield Problem(message, where, hint)


def _values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the entry. Null and "" count as missing; a role without a column has the name ""."""
    values = {key: entry[key] for key in Description.__dataclass_fields__ if entry.get(key) not in (None, "")}
    for key in ("columns", "tags"):
        names = {role: name or "" for role, name in (entry.get(key) or {}).items()}
        values[key] = names if key == "columns" else {role: name for role, name in names.items() if name}
    return values | {"hub_id": entry.get("hf_hub_url") or ""}


def _key_problem(name: str, key: str, value: Any, where: str, has_source: bool) -> Problem | None:
    if key not in _KINDS:
        hint = did_you_mean(key, _KINDS, f"known: {', '.join(_KINDS)}", most=1)
        return Problem(f"dataset {quoted(name)} has an unknown key {quoted(key)}", where, hint)
    if value in (None, "") or (key in _UNSUPPORTED and has_source):
        return None  # a further address of what is read from elsewhere
    if key in _UNSUPPORTED:
        return Problem(f"dataset {quoted(name)}: {key} is not supported", where, _UNSUPPORTED[key])
    kind, what = _KINDS[key]
    fits = isinstance(value, kind)
    if isinstance(value, dict):
        fits = fits and all(item is None or isinstance(item, str) for item in value.values())
    elif isinstance(value, int) and kind is int:
        fits = value >= 1 and not isinstance(value, bool)
    return None if fits else Problem(f"dataset {quoted(name)}: {key} must be {what}, not {quoted(value)}", where)


def _line(text: str, key: str, *, after: int = 1) -> int:
    """The line of ``"key":``, searched from line ``after``; ``after`` if the key is written with escapes."""
    start = len("".join(text.splitlines(keepends=True)[: after - 1]))
    found = [match.start() for match in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", text)]
    found = [position for position in found if position >= start]
    return text.count("\n", 0, found[0]) + 1 if found else after
