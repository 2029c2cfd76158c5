"""Builds templates from rows of the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftcore.api.components import ChatTemplate

_FOLDER = Path(__file__).parent


def template(
    name: str, summary: str, *stop: str, file: str = "", settings: Mapping[str, Any] | None = None, **more: Any
) -> ChatTemplate:
    """A template whose source is ``<file or name>.jinja`` in this folder.

    Args:
        name, summary, more: fields of `ChatTemplate`.
        stop: stop tokens.
        file: the Jinja file without its suffix, if several templates share it.
        settings: variables set before the file, including `default_system` with ``file``. They are part of the source,
            because the template is saved with the tokenizer.
    """
    path = _FOLDER / f"{file or name}.jinja"
    values = dict(settings or {})
    if file and more.get("default_system"):
        values["default_system"] = more["default_system"]
    if not values:
        return ChatTemplate(name=name, summary=summary, path=path, stop=stop, **more)
    text = "\n".join([*(_setting(*item) for item in values.items()), path.read_text(encoding="utf-8")])
    return ChatTemplate(name=name, summary=summary, text=text, stop=stop, **more)


def _setting(variable: str, value: Any) -> str:
    """A Jinja statement; JSON values are valid Jinja literals."""
    statement = f"{{%- set {variable} = {json.dumps(value, ensure_ascii=False)} %}}"
    if variable != "default_system":
        return statement
    return f"{{%- if default_system is not defined %}}{statement}{{%- endif %}}"  # a run may set its own
