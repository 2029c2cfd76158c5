"""The kind of component that reads a dataset's rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ftcore.api.component import Component

if TYPE_CHECKING:
    from ftcore.api.samples import Sample


@dataclass(frozen=True, kw_only=True)
class DatasetFormat(Component, ABC):
    """Reads one row of a dataset into a sample.

    Args:
        columns: role -> its default column, which ``dataset_info.json`` may override.
        tags: the same for keys inside a column, such as the key of a message's role.
        samples: names of the sample classes that it can return, such as ``Chat``; empty if this depends on the row.
    """

    kind = "dataset_format"

    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    samples: tuple[str, ...] = ()

    @abstractmethod
    def matches(self, columns: frozenset[str]) -> bool:
        """Whether a dataset with these columns, and no ``formatting``, has this format."""

    @abstractmethod
    def read(self, row: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> Sample:
        """The row as a sample.

        Args:
            row: column -> value.
            columns: role -> column: the format's own, updated by the dataset's description. The roles ``response``,
                ``chosen``, ``rejected`` and ``kto_tag`` are present only if they are to be read. With ``chosen`` and
                ``rejected`` the sample is a `Preference`, with ``kto_tag`` a `Feedback`, with none of the four a
                prompt. A column with an empty name does not exist in the dataset.
            tags: likewise.

        Raises:
            RowError: with the field, its value, the reason and the cure.
        """
