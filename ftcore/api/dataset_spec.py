"""One dataset of a run, described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One dataset, described.

    Args:
        name: as the user wrote it.
        path: the file or folder; None for a hub id.
        hub_id: set when it is to be fetched.
        format: name of the dataset format; None to find it from the columns.
        columns: role -> column, as far as described.
        tags: role -> key inside a column, as far as described.
        ranking: whether rows are preferences.
        subset: hub subset.
        folder: hub folder that holds the data.
        split: which split of a folder or hub dataset.
        num_samples: so many rows are drawn at random; more than there are repeat rows.
        where: the place that names it, such as ``x.yaml:12``.
    """

    name: str
    path: Path | None
    hub_id: str = ""
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    ranking: bool = False
    subset: str | None = None
    folder: str | None = None
    split: str = "train"
    num_samples: int | None = None
    where: str = ""
