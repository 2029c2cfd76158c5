"""The description of one dataset of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """The description of one dataset.

    Args:
        name: as the user wrote it.
        path: the file or folder; None for a hub id.
        hub_id: the hub id of a dataset to download.
        format: name of the dataset format; None to detect it from the columns.
        columns: role -> column, for the roles that are described.
        tags: role -> key inside a column, for the roles that are described.
        ranking: whether rows are preferences.
        subset: hub subset.
        folder: hub folder that holds the data.
        split: which split of a folder or hub dataset.
        num_samples: number of rows drawn at random; rows repeat if it is larger than the dataset.
        where: the place that names the dataset, such as ``x.yaml:12``.
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
