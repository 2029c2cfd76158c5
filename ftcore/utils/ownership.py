"""Which files in an output folder ft wrote: only those are deleted or replaced, everything else is named and stays."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftcore.errors import listed
from ftcore.utils.hashing import sha256_of
from ftcore.utils.json_files import read_object

MANIFEST = "MANIFEST.json"
"""Of a checkpoint: it lists the files that ft wrote there, and is sealed with a digest of itself."""
RUN_MANIFEST = "ft_run.json"
RUN_LOG = "ft_run.log"
LOCK = ".ft.lock"

BACKUP = ".before-ft"
WRITTEN = ("*_results.json", "trainer_log.jsonl", "quarantine.jsonl", "generated_predictions.jsonl", "training_*.png")
"""What runs write into the folder besides what was trained."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STAGED_FOLDER = re.compile(r"\.tmp-(?:\d+|trained|hub-checkpoint-\d+)-\d+")
_STAGED_FILE = re.compile(r"\.tmp-\d+-.+\.jsonl?")
_STATE = frozenset({"progress.json", "random-0.json"})
"""Files of a checkpoint that no other trainer writes: transformers keeps the same in ``.pt`` and ``.pth``."""
_SUFFIXES = frozenset({".json", ".jinja", ".model", ".safetensors", ".txt"})
"""Of the files of a checkpoint whose manifest is lost, so that nobody knows which of them ft wrote."""


def step_of(path: Path) -> int | None:
    """N of ``checkpoint-N``; None for another name."""
    match = _CHECKPOINT.fullmatch(path.name)
    return int(match[1]) if match else None


def named_checkpoints(output_dir: Path) -> list[Path]:
    """Everything that is named like a checkpoint, by step: folders, links, files."""
    found = ((step, path) for path in output_dir.glob("checkpoint-*") if (step := step_of(path)) is not None)
    return [path for _, path in sorted(found)]


def canonical(content: Mapping[str, Any]) -> bytes:
    """The bytes that a seal is the digest of."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def seal_of(content: Mapping[str, Any]) -> str:
    """sha256 of a manifest's content."""
    return sha256_of(canonical(content))


def sealed_manifest(folder: Path) -> dict[str, Any] | None:
    """The content of a checkpoint's manifest, without its seal; None where there is none whose seal holds."""
    try:
        content = dict(read_object(folder / MANIFEST))
        seal = content.pop("seal")
    except (ValueError, KeyError):
        return None
    return content if seal == seal_of(content) else None


def not_ours(path: Path) -> str:
    """Why something that is named like a checkpoint is neither deleted nor replaced; empty where it may be.

    It may be where a manifest of ft lists every file in it; of a checkpoint that has lost its manifest, where it holds
    the files of state that only ft writes. An empty folder may be replaced as well: nothing is lost with it.
    """
    if path.is_symlink():
        return "is a symbolic link"
    if not path.is_dir():
        return "is not a folder" if path.exists() else ""
    if not os.access(path, os.R_OK | os.X_OK):
        return "cannot be looked into"
    reason = _strange(path)
    return reason if path.is_dir() else ""  # a run that lives may have deleted it meanwhile


def _strange(path: Path) -> str:
    if not (present := _files(path)):
        return ""
    manifest = sealed_manifest(path)
    if manifest is not None:
        strange = sorted(present - {MANIFEST, *manifest["files"]})
    elif present >= _STATE:
        strange = sorted(name for name in present if Path(name).suffix not in _SUFFIXES)
    else:
        return "was not written by ft"
    return f"holds files that ft did not write ({listed(strange, 3)})" if strange else ""


def is_staged(path: Path) -> bool:
    """Whether this is what ft writes before it is moved into place, or has moved away to delete it."""
    if path.is_symlink():
        return False
    return bool((_STAGED_FOLDER if path.is_dir() else _STAGED_FILE).fullmatch(path.name))


def is_ours(folder: Path) -> bool:
    """Whether a run of ft left what lies in a folder; one that was killed at its start leaves but a lock."""
    if (folder / RUN_MANIFEST).is_file() or any(map(_written_by_ft, named_checkpoints(folder))):
        return True
    found = list(folder.iterdir())
    return any(map(is_staged, found)) or all(path.name in (LOCK, RUN_LOG) for path in found)


def foreign_files(folder: Path) -> list[str]:
    """Names in an output folder that were there before the first run of ft, checkpoints left out.

    A run that finds no manifest of an earlier one notes what lies there; later runs read that.
    """
    if not folder.is_dir():
        return []
    if not (folder / RUN_MANIFEST).exists():
        return [] if is_ours(folder) else sorted(path.name for path in folder.iterdir() if not _known(path))
    try:
        noted = read_object(folder / RUN_MANIFEST).get("foreign_files", [])
    except ValueError:
        return []
    kept_aside = {name for name in noted if (folder / f"{name}{BACKUP}").exists()}  # what has the name now is ft's
    return [name for name in noted if name not in kept_aside and os.path.lexists(folder / name)]


def keep_aside(file: Path) -> None:
    """Gives a file that ft did not write the name ``NAME.before-ft``, once: what has its name afterwards is ft's."""
    aside = file.with_name(file.name + BACKUP)
    if not aside.exists() and not aside.is_symlink():
        file.rename(aside)


def put_back_aside(file: Path) -> None:
    """Undoes `keep_aside` where nothing has taken the file's place."""
    aside = file.with_name(file.name + BACKUP)
    if os.path.lexists(aside) and not os.path.lexists(file):
        aside.rename(file)


def _files(folder: Path) -> set[str]:
    """Everything below a folder that is no folder itself; nothing where it is gone."""
    try:
        below = list(folder.rglob("*"))
    except FileNotFoundError:
        return set()
    return {file.relative_to(folder).as_posix() for file in below if file.is_symlink() or not file.is_dir()}


def _written_by_ft(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    return sealed_manifest(path) is not None or _files(path) >= _STATE


def _known(path: Path) -> bool:
    return path.name in (LOCK, RUN_LOG) or step_of(path) is not None or is_staged(path)
