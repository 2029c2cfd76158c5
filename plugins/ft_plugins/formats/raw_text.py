"""text: raw text for pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ft_plugins.formats.answers import MEDIA, no_media
from ft_plugins.formats.fields import required, text
from ftcore.api.components import DatasetFormat
from ftcore.api.samples import Text
from ftcore.errors import RowError


@dataclass(frozen=True, kw_only=True)
class RawText(DatasetFormat):
    """``{"text": ...}``: each row is a document."""

    name: str = "text"
    summary: str = "text: one document a row, for pretraining"
    columns: Mapping[str, str] = field(default_factory=lambda: {"prompt": "text", **MEDIA})
    samples: tuple[str, ...] = ("Text",)

    def matches(self, columns: frozenset[str]) -> bool:
        """Matches the column of text."""
        return "text" in columns

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> Text:
        """Reads the document of a row, with all white space."""
        column = columns["prompt"]
        cure = f"write the text in {column}, or remove the row"
        found = text(required(row, column, cure), column)
        if not found.strip():
            raise RowError(f"{column} is empty: there is nothing to train on", field=column, value=found, cure=cure)
        no_media(row, columns)
        return Text(found)
