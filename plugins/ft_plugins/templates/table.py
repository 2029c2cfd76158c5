"""How the groups of templates write their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftcore.components import ChatTemplate

_FOLDER = Path(__file__).parent


def template(name: str, summary: str, *stop: str, file: str = "", **more: Any) -> ChatTemplate:
    """A template whose source is ``<file or name>.jinja`` in this folder; ``stop`` is what ends the model's turn."""
    return ChatTemplate(name=name, summary=summary, path=_FOLDER / f"{file or name}.jinja", stop=stop, **more)
