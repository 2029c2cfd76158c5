"""Reads what the user wrote: a flat YAML or JSON file and ``key=value`` words, each value with its place.

YAML is read as version 1.2, so that ``1e-4`` is a number and ``no`` a word. Nodes are composed, not loaded: each key
keeps its line, and tags cannot run code. Aliases that would expand to gigabytes are refused before they expand.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcore.errors import Problem, UsageError, quoted, short
from ftcore.utils.strict_json import line_and_column, repeated_keys

COMMAND_LINE = "command line"
MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Setting:
    """One value that the user wrote, and where."""

    name: str
    value: Any
    where: str


def read_settings(file: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Setting]:
    """Name -> setting, the command line winning over the file.

    Raises:
        UsageError: every problem of the file and of the overrides together.
    """
    problems: list[Problem] = []
    settings: dict[str, Setting] = {}
    for part in (_file_settings(file) if file else (), _overrides(overrides)):
        for found in part:
            if isinstance(found, Problem):
                problems.append(found)
            else:
                settings[found.name] = found
    if problems:
        raise UsageError(problems)
    return settings


def from_mapping(values: Mapping[str, Any], where: str) -> dict[str, Setting]:
    """Settings from a mapping."""
    return {name: Setting(name, value, where) for name, value in values.items()}


def _file_settings(file: str | Path) -> Iterable[Setting | Problem]:
    path = Path(file)
    try:
        if not path.is_file():
            return [Problem("the file does not exist" if not path.exists() else "it is not a file", str(file))]
        if path.stat().st_size > MAX_BYTES:
            return [Problem(f"the file is larger than {MAX_BYTES:,} bytes", str(file), "name a configuration file")]
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return [Problem(f"byte {error.start} is not UTF-8", str(file), "save the file as UTF-8")]
    except (OSError, ValueError) as error:
        return [Problem(f"the file cannot be read: {error}", str(file))]
    return _json_settings(text, str(file)) if path.suffix == ".json" else _yaml_settings(text, str(file))


def _overrides(words: Sequence[str]) -> Iterable[Setting | Problem]:
    for word in words:
        name, equals, text = word.partition("=")
        name = name.removeprefix("--")
        if not equals or not name:
            yield Problem(f"{quoted(word)} is not key=value", COMMAND_LINE, "write for instance learning_rate=1e-4")
            continue
        yield from _override(name, text)


def _override(name: str, text: str) -> Iterable[Setting | Problem]:
    from ruamel.yaml.error import YAMLError

    try:
        yield Setting(name, _construct(_compose(text)) if text.strip() else None, COMMAND_LINE)
    except (YAMLError, ValueError, RecursionError) as error:
        yield Problem(f"the value of {name} cannot be read: {_yaml_message(error)}", COMMAND_LINE)


def _yaml_settings(text: str, file: str) -> Iterable[Setting | Problem]:
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.nodes import MappingNode

    try:
        root = _compose(text)
        if root is None:
            return [Problem("the file is empty", file)]
        if not isinstance(root, MappingNode):
            return [
                Problem("the file is not a mapping", f"{file}:{root.start_mark.line + 1}", "write key: value lines")
            ]
        return list(_pairs(root, file))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return [Problem(f"not valid YAML: {_yaml_message(error)}", f"{file}:{mark.line + 1}" if mark else file)]
    except (YAMLError, ValueError, RecursionError) as error:
        return [Problem(f"not valid YAML: {_yaml_message(error)}", file)]


def _pairs(root: Any, file: str) -> Iterable[Setting | Problem]:
    seen: dict[str, int] = {}
    for key_node, value_node in root.value:
        line = key_node.start_mark.line + 1
        where = f"{file}:{line}"
        name = key_node.value if isinstance(key_node.value, str) else None
        if name is None or name == "<<":
            yield Problem("a key must be plain text", where)
        elif name in seen:
            yield Problem(f"{short(name)} is repeated, first on line {seen[name]}", where, "keep one")
        else:
            seen[name] = line
            try:
                yield Setting(name, _construct(value_node), where)
            except Exception as error:  # a constructor raises whatever the value's own parser does
                yield Problem(f"the value of {name} cannot be read: {_yaml_message(error)}", where)


def _compose(text: str) -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # YAML allows an anchor's name to be reused
    try:
        root = yaml.compose(text)
    except (KeyError, AssertionError) as error:  # ruamel.yaml raises these for an unknown version
        raise ValueError("the %YAML line names an unknown version; write 1.1 or 1.2") from error
    if root is not None:
        _measure(root, {}, 0)
    return root


def _measure(node: Any, sizes: dict[int, int], depth: int) -> int:
    """Counts the nodes with every alias expanded.

    Raises:
        ValueError: if there are too many, or a node contains itself.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"values are nested deeper than {MAX_DEPTH}")
    if (known := sizes.get(id(node))) is not None:
        if known == 0:
            raise ValueError("an alias refers to a node that contains it")
        return known
    sizes[id(node)] = 0
    size = 1
    if isinstance(node.value, list):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                size += _measure(part, sizes, depth + 1)
    if size > MAX_NODES:
        raise ValueError(f"with aliases expanded there are more than {MAX_NODES:,} values")
    sizes[id(node)] = size
    return size


def _construct(node: Any) -> Any:
    from ruamel.yaml import YAML

    if node is None:
        return None
    value = YAML(typ="safe", pure=True).constructor.construct_document(node)
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("keys must be text")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime.date):
        return value.isoformat()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ValueError(f"a value of type {type(value).__name__} is not supported")


def _json_settings(text: str, file: str) -> Iterable[Setting | Problem]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        return [Problem(f"not valid JSON: {error.msg}", f"{file}:{error.lineno}")]
    except (RecursionError, ValueError) as error:
        return [Problem(f"not valid JSON: {error}", file)]
    if not isinstance(values, dict):
        return [Problem("the file is not an object", file, 'write {"key": value, ...}')]
    found: list[Setting | Problem] = [
        Problem(f"{short(name)} is repeated", "{}:{}:{}".format(file, *line_and_column(text, position)), "keep one")
        for name, position in repeated_keys(text)
    ]
    return found + [Setting(name, value, f"{file}:{_json_line(text, name)}") for name, value in values.items()]


def _json_line(text: str, name: str) -> int:
    match = re.search(re.escape(json.dumps(name, ensure_ascii=False)) + r"\s*:", text)
    return text.count("\n", 0, match.start()) + 1 if match else 1


def _yaml_message(error: BaseException) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())
