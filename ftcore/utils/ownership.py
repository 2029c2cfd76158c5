"""Which files in an output folder ft wrote. Only these are deleted or replaced; all others are listed and stay."""

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
"""The manifest of a checkpoint: it lists the files that ft wrote there, and contains a digest of itself (the seal)."""
RUN_MANIFEST = "ft_run.json"
RUN_LOG = "ft_run.log"
LOCK = ".ft.lock"

BACKUP = ".before-ft"
WRITTEN = ("*_results.json", "trainer_log.jsonl", "quarantine.jsonl", "generated_predictions.jsonl", "training_*.png")
"""Files that runs write into the folder besides the trained weights."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STAGED_FOLDER = re.compile(r"\.tmp-(?:\d+|trained|hub-checkpoint-\d+)-\d+")
_STAGED_FILE = re.compile(r"\.tmp-\d+-.+\.jsonl?")
_STATE = frozenset({"progress.json", "random-0.json"})
"""Files of a checkpoint that no other trainer writes: transformers uses ``.pt`` and ``.pth`` files."""
_SUFFIXES = frozenset({".json", ".jinja", ".model", ".safetensors", ".txt"})
"""Suffixes of files that ft may have written, for a checkpoint without a manifest."""


def step_of(path: Path) -> int | None:
    """N of ``checkpoint-N``; None for other names."""
    match = _CHECKPOINT.fullmatch(path.name)
    return int(match[1]) if match else None


def named_checkpoints(output_dir: Path) -> list[Path]:
    """All paths named like a checkpoint, by step: folders, links, files."""
    found = ((step, path) for path in output_dir.glob("checkpoint-*") if (step := step_of(path)) is not None)
    return [path for _, path in sorted(found)]


def canonical(content: Mapping[str, Any]) -> bytes:
    """The bytes from which a seal is computed."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def seal_of(content: Mapping[str, Any]) -> str:
    """sha256 of a manifest's content."""
    return sha256_of(canonical(content))


def sealed_manifest(folder: Path) -> dict[str, Any] | None:
    """The content of a checkpoint's manifest without its seal; None if there is none with a valid seal."""
    try:
        content = dict(read_object(folder / MANIFEST))
        seal = content.pop("seal")
    except (ValueError, KeyError):
        return None
    return content if seal == seal_of(content) else None


def not_ours(path: Path) -> str:
    """Why a path named like a checkpoint must not be deleted or replaced; empty if it may be.

    It may be if a manifest of ft lists all its files. Without a manifest, it must have the state files that only ft
    writes. An empty folder may be replaced too.
    """
    if path.is_symlink():
        return "is a symbolic link"
    if not path.is_dir():
        return "is not a folder" if path.exists() else ""
    if not os.access(path, os.R_OK | os.X_OK):
        return "cannot be read"
    reason = _foreign_reason(path)
    return reason if path.is_dir() else ""  # a running process may have deleted it in the meantime


def _foreign_reason(path: Path) -> str:
    if not (present := _files(path)):
        return ""
    manifest = sealed_manifest(path)
    if manifest is not None:
        foreign = sorted(present - {MANIFEST, *manifest["files"]})
    elif present >= _STATE:
        foreign = sorted(name for name in present if Path(name).suffix not in _SUFFIXES)
    else:
        return "was not written by ft"
    return f"holds files that ft did not write ({listed(foreign, 3)})" if foreign else ""


def is_staged(path: Path) -> bool:
    """Whether a path is temporary: ft writes it before moving it into place, or has moved it away to delete it."""
    if path.is_symlink():
        return False
    return bool((_STAGED_FOLDER if path.is_dir() else _STAGED_FILE).fullmatch(path.name))


def is_ours(folder: Path) -> bool:
    """Whether a run of ft wrote to a folder; a run that was killed at its start leaves only a lock."""
    if (folder / RUN_MANIFEST).is_file() or any(map(_written_by_ft, named_checkpoints(folder))):
        return True
    found = list(folder.iterdir())
    return any(map(is_staged, found)) or all(path.name in (LOCK, RUN_LOG) for path in found)


def foreign_files(folder: Path) -> list[str]:
    """Names in an output folder that existed before the first run of ft, without checkpoints.

    A run without an earlier manifest records them in its own, where later runs read them.
    """
    if not folder.is_dir():
        return []
    if not (folder / RUN_MANIFEST).exists():
        return [] if is_ours(folder) else sorted(path.name for path in folder.iterdir() if not _known(path))
    try:
        noted = read_object(folder / RUN_MANIFEST).get("foreign_files", [])
    except ValueError:
        return []
    kept_aside = {
        name for name in noted if (folder / f"{name}{BACKUP}").exists()
    }  # ft wrote the file that now has this name
    return [name for name in noted if name not in kept_aside and os.path.lexists(folder / name)]


def keep_aside(file: Path) -> None:
    """Renames a file that ft did not write to ``NAME.before-ft``, unless that exists: then ft wrote the file."""
    aside = file.with_name(file.name + BACKUP)
    if not aside.exists() and not aside.is_symlink():
        file.rename(aside)


def put_back_aside(file: Path) -> None:
    """Undoes `keep_aside` unless there is a new file of the name."""
    aside = file.with_name(file.name + BACKUP)
    if os.path.lexists(aside) and not os.path.lexists(file):
        aside.rename(file)


def _files(folder: Path) -> set[str]:
    """All files and links below a folder; empty if it no longer exists."""
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
