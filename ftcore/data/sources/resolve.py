"""Resolves dataset names to files, folders or hub ids, without reading rows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ftcore.api.dataset_spec import DatasetSpec
from ftcore.data.sources.dataset_info import INFO, Description, describe
from ftcore.errors import Problem, listed, quoted, short
from ftcore.utils.cache_dir import is_there
from ftcore.utils.suggestions import did_you_mean

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".txt")
"""Supported file name suffixes, each also with ``.gz``."""

_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
"""Files that ``datasets`` writes next to the Arrow files of a saved dataset, and next to its split folders."""
_A_FILE = "write the path of a file or of a folder of files"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SPLIT = re.compile(r"(train|validation|valid|val|dev|test)(?:[-_.].*)?", re.IGNORECASE)
_SAME_SPLIT = {"valid": "validation", "val": "validation", "dev": "validation"}


def resolve(
    names: Sequence[str], *, dataset_dir: str | Path, where: str = "", evaluation: bool = False
) -> tuple[tuple[DatasetSpec, ...], list[Problem]]:
    """The dataset of each name, and every problem in the names and their descriptions.

    A name is looked up in ``dataset_info.json``, then as a file or folder (from the working directory, then from
    ``dataset_dir``); any other name of the form ``organisation/name`` is a hub id.

    Args:
        names: what ``dataset`` or ``eval_dataset`` lists.
        dataset_dir: folder of ``dataset_info.json`` and of the files that it names.
        where: the place that lists the names, such as ``x.yaml:12``.
        evaluation: whether the datasets are for evaluation: a folder with splits then stands for its ``validation``.
    """
    folder = Path(dataset_dir)
    if not names:
        return (), []
    described, problems = describe(folder)
    broken = bool(problems)
    specs = []
    for name in names:
        found = _resolve(name, folder, described, where)
        if isinstance(found, DatasetSpec):
            if evaluation and has_split(found, "validation"):
                found = replace(found, split="validation")
            specs.append(found)
            problems += split_problems(found)
        elif name in described or not broken:  # a damaged dataset_info.json may describe this name
            problems += found
    return tuple(specs), problems


def _resolve(
    name: str, folder: Path, described: Mapping[str, Description], where: str
) -> DatasetSpec | Sequence[Problem]:
    if name in described:
        return _described(name, described[name], folder, where)
    for path in filter(is_there, (Path(name), folder / name)):
        if path.is_dir() or (path.is_file() and _suffix(path)):
            return DatasetSpec(name=name, path=path, where=where)
        return [_not_data(name, path, where)]
    if _HUB_ID.fullmatch(name) and not _suffix(Path(name)):
        return DatasetSpec(name=name, path=None, hub_id=name, where=where)
    return [Problem(f"no dataset {quoted(name)}", where, _near(name, folder, described))]


def _described(name: str, entry: Description, folder: Path, where: str) -> DatasetSpec | Sequence[Problem]:
    if entry.problems:
        return entry.problems
    path = None
    if not entry.hub_id:
        path = folder / entry.file_name
        if not is_there(path):
            files = _files(folder)
            hint = did_you_mean(entry.file_name, files, f"files there: {listed(files)}")
            return [
                Problem(
                    f"dataset {quoted(name)} names {short(str(path), 200)}, which does not exist", entry.where, hint
                )
            ]
        if not path.is_dir() and not (path.is_file() and _suffix(path)):
            return [_not_data(name, path, entry.where)]
    return DatasetSpec(
        name=name,
        path=path,
        hub_id=entry.hub_id,
        format=entry.formatting,
        columns=entry.columns,
        tags=entry.tags,
        ranking=entry.ranking,
        subset=entry.subset,
        folder=entry.folder,
        split=entry.split,
        num_samples=entry.num_samples,
        where=where,
    )


def data_files(spec: DatasetSpec) -> tuple[Path, ...]:
    """The files of the dataset's split, sorted. Without split files, all files of a folder are ``train``."""
    assert spec.path is not None  # hub datasets have no files here
    if not spec.path.is_dir():
        return (spec.path,)
    splits = _splits(spec.path)
    return tuple(splits.get(spec.split, ())) if splits else tuple(_data_files(spec.path))


def has_split(spec: DatasetSpec, split: str) -> bool:
    """Whether the dataset is a folder that holds files of this split."""
    return spec.path is not None and spec.path.is_dir() and split in _splits(spec.path)


def split_problems(spec: DatasetSpec) -> list[Problem]:
    """Problems of a folder: no data, a missing split, files without a split."""
    if spec.path is None or not spec.path.is_dir():
        return []
    files, splits = _data_files(spec.path), _splits(spec.path)
    if odd := [
        entry for entry in sorted(spec.path.iterdir()) if _suffix(entry) and not entry.is_file() and not entry.is_dir()
    ]:
        return [_not_data(spec.name, entry, spec.where) for entry in odd]
    if not files and not splits:
        return [Problem(f"folder {spec.path} holds no data", spec.where, f"data files end in {', '.join(SUFFIXES)}")]
    if not splits:
        return []
    problems = []
    if spec.split not in splits:
        hint = f"available splits: {', '.join(splits)}"
        problems.append(Problem(f"folder {spec.path} has no {quoted(spec.split)} split", spec.where, hint))
    strays = [file.name for file in files if not _split_of(file)]
    if strays:
        message = f"folder {spec.path} mixes split files with other data files: {listed(strays)}"
        problems.append(
            Problem(message, spec.where, "rename the other files to train-..., or move them to another folder")
        )
    return problems


def _splits(folder: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    if (folder / _SAVED_SPLITS).is_file():
        for part in sorted(part for part in folder.iterdir() if _is_saved(part)):
            splits.setdefault(_split_of(part) or part.name, []).extend(_data_files(part))
        return splits
    for file in _data_files(folder):
        if split := _split_of(file):
            splits.setdefault(split, []).append(file)
    return splits


def _split_of(file: Path) -> str:
    found = _SPLIT.fullmatch(file.name)
    return _SAME_SPLIT.get(found[1].lower(), found[1].lower()) if found else ""


def _data_files(folder: Path) -> list[Path]:
    others = {INFO, _SAVED_SPLITS, _SAVED} if _is_saved(folder) or (folder / _SAVED_SPLITS).is_file() else {INFO}
    return sorted(file for file in folder.iterdir() if file.is_file() and file.name not in others and _suffix(file))


def _is_saved(folder: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` wrote the folder; a data file may be named state.json as well."""
    try:
        state = json.loads((folder / _SAVED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(state, dict) and "_data_files" in state


def _suffix(path: Path) -> str:
    """The supported suffix of the file, without ``.gz``; empty for other files."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def _not_data(name: str, path: Path, where: str) -> Problem:
    if path.is_symlink() and not path.exists():
        return Problem(
            f"dataset {quoted(name)}: {path} is a broken symbolic link",
            where,
            "point the link to an existing file",
        )
    if not path.is_file():
        return Problem(f"dataset {quoted(name)}: {path} is neither a file nor a folder", where, _A_FILE)
    return Problem(
        f"dataset {quoted(name)}: cannot tell the format of {path}", where, f"data files end in {', '.join(SUFFIXES)}"
    )


def _near(name: str, folder: Path, described: Mapping[str, Description]) -> str:
    files = _files(folder)
    if hint := did_you_mean(name, [*described, *files]):
        return hint
    if described:
        return f"{folder / INFO} describes {listed(sorted(described))}"
    if not folder.is_dir():
        return f"dataset_dir {quoted(str(folder), 200)} is not a folder; set dataset_dir, or write the path of a file"
    return f"there is no {folder / INFO}; files there: {listed(files)}"


def _files(folder: Path) -> list[str]:
    return [file.name for file in _data_files(folder)] if folder.is_dir() else []
