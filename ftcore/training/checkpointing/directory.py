"""Atomic checkpoints.

Files are written into ``.tmp-<step>-<pid>``, flushed to the disk, and listed with size and sha256 in ``MANIFEST.json``.
The folder is then renamed to ``checkpoint-<step>``. Readers accept only folders that match their manifest, so a process
may be killed at any moment. sha256 of 0.54 GB takes 0.45 s, writing it 1.4 s.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ftcore.errors import Problem, RunError, UsageError
from ftcore.utils.files import flush
from ftcore.utils.hashing import contents_sha256
from ftcore.utils.ownership import MANIFEST, is_staged, named_checkpoints, not_ours, seal_of

log = logging.getLogger(__name__)

FORMAT = 1
FINGERPRINT_FORM = 2
"""Version of a `RunFingerprint`'s contents. Form 1, of ft up to 0.1, lists some of the options that decide the weights.
Form 2 lists all options except those declared harmless."""


class DamagedError(RunError):
    """A checkpoint that differs from what was written."""


@dataclass(frozen=True)
class RunFingerprint:
    """What must be equal for a run to resume: option or input -> its value as text.

    Args:
        values: compared.
        causes: input -> its sources. They are not compared; a message names those that differ.
        form: see `FINGERPRINT_FORM`.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    causes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    form: int = FINGERPRINT_FORM

    @property
    def digest(self) -> str:
        """sha256 over all values."""
        return seal_of(dict(self.values))

    def differences(self, now: RunFingerprint) -> list[Problem]:
        """The differences between two fingerprints, each with the sources that differ.

        Fingerprints of different forms always differ. What both list is compared.
        """
        found, before, after = [], self.values, now.values
        if self.form != now.form:
            reason = f"the checkpoint lists its options in form {self.form}, this version of ft in form {now.form}"
            found.append(Problem(f"{reason}: options that only one of them lists cannot be compared"))
            before = {name: value for name, value in before.items() if name in now.values}
            after = {name: value for name, value in after.items() if name in self.values}
        for name, then, new in _unequal(before, after, _NOT_COMPARED):
            causes = _unequal(self.causes.get(name, {}), now.causes.get(name, {}))
            because = f" ({'; '.join(f'{cause} was {a}, now it is {b}' for cause, a, b in causes)})" if causes else ""
            found.append(Problem(f"{name} was {then}, now it is {new}{because}"))
        return found


_NOT_COMPARED = "not compared"
"""Value of an option that only one of two runs has."""


def _unequal(then: Mapping[str, str], now: Mapping[str, str], missing: str = "unset") -> list[tuple[str, str, str]]:
    pairs = ((name, then.get(name, missing), now.get(name, missing)) for name in sorted({*then, *now}))
    return [(name, before, after) for name, before, after in pairs if before != after]


@dataclass(frozen=True)
class Manifest:
    """The contents of a checkpoint's MANIFEST.json.

    Args:
        step: number of optimizer steps.
        files: relative name -> size in bytes and sha256.
        setting: fingerprint of the run that wrote it.
        resumable: whether it holds more than the weights.
        versions: distribution -> version, for information.
    """

    step: int
    files: Mapping[str, tuple[int, str]]
    setting: RunFingerprint
    resumable: bool
    versions: Mapping[str, str]

    def dump(self) -> str:
        """The file's text, with a digest of its own contents."""
        content = {
            "format": FORMAT,
            "step": self.step,
            "resumable": self.resumable,
            "plan": self.setting.digest,
            "setting_form": self.setting.form,
            "setting": dict(self.setting.values),
            "causes": {name: dict(found) for name, found in self.setting.causes.items()},
            "versions": dict(self.versions),
            "files": {name: {"size": size, "sha256": digest} for name, (size, digest) in self.files.items()},
        }
        return json.dumps(content | {"seal": seal_of(content)}, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads and checks the manifest of a checkpoint.

        Raises:
            DamagedError: it is missing, altered, or of a format that this version does not read.
        """
        file = folder / MANIFEST
        try:
            content = json.loads(file.read_bytes())
            seal = content.pop("seal")
        except FileNotFoundError:
            raise DamagedError(f"{file} is missing") from None
        except (ValueError, KeyError, AttributeError, TypeError):
            raise DamagedError(f"{file} is damaged") from None
        if seal != seal_of(content):
            raise DamagedError(f"{file} is damaged")
        if content["format"] != FORMAT:
            raise DamagedError(f"{file} has format {content['format']}, this version reads {FORMAT}")
        files = {name: (entry["size"], entry["sha256"]) for name, entry in content["files"].items()}
        setting = RunFingerprint(content["setting"], content.get("causes", {}), content.get("setting_form", 1))
        return cls(content["step"], files, setting, content["resumable"], content["versions"])


def stage(output_dir: Path, step: int) -> Path:
    """Creates an empty folder for the files of a checkpoint."""
    folder = output_dir / f".tmp-{step}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def commit(staged: Path, step: int, setting: RunFingerprint, *, resumable: bool, versions: Mapping[str, str]) -> Path:
    """Writes the manifest of a staged folder and renames the folder.

    Returns:
        ``checkpoint-<step>``, read back and verified.

    Raises:
        RunError: a folder of that name exists, and ft did not write it.
    """
    files = {}
    for file in sorted(path for path in staged.rglob("*") if path.is_file()):
        flush(file)
        files[file.relative_to(staged).as_posix()] = (file.stat().st_size, contents_sha256(file))
    manifest = staged / MANIFEST
    manifest.write_text(Manifest(step, files, setting, resumable, versions).dump(), encoding="utf-8")
    for path in (manifest, *(path for path in staged.rglob("*") if path.is_dir()), staged):
        flush(path)
    final = staged.parent / f"checkpoint-{step}"
    if final.is_symlink() or final.exists():  # of an earlier run, or damaged: renamed before it is deleted
        if reason := not_ours(final):
            raise RunError(f"{final} {reason}, and is not replaced; move it away and run the same command again")
        remove(final)
    staged.rename(final)
    flush(final.parent)
    verify(final)
    return final


def verify(folder: Path) -> Manifest:
    """Checks all files of a checkpoint against its manifest, and returns the manifest.

    Raises:
        DamagedError: with the first file that differs.
    """
    manifest = Manifest.read(folder)
    for name, (size, digest) in manifest.files.items():
        file = folder / name
        try:
            found = file.stat().st_size
            whole = found == size and contents_sha256(file) == digest
        except FileNotFoundError:  # also where a run deletes it at this moment
            raise DamagedError(f"{file} is missing") from None
        if found != size:
            raise DamagedError(f"{file} has {found} bytes, not {size}")
        if not whole:
            raise DamagedError(f"{file} is damaged: its sha256 differs from the manifest's")
    return manifest


def checkpoints(output_dir: Path) -> list[Path]:
    """Folders named like checkpoints, whole or not, by step, without links to folders."""
    return [path for path in named_checkpoints(output_dir) if path.is_dir() and not path.is_symlink()]


def earlier_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoints that ft wrote and that contain nothing else."""
    return [path for path in checkpoints(output_dir) if not not_ours(path)]


def find_resumable(output_dir: Path, setting: RunFingerprint, *, force: bool = False) -> Path | None:
    """The newest whole checkpoint to resume from; damaged ones are skipped with a warning.

    Args:
        output_dir: of the run.
        setting: fingerprint of the run.
        force: accept another fingerprint, with a warning for every difference.

    Raises:
        UsageError: its fingerprint differs, with every difference.
    """
    listed = checkpoints(output_dir)
    for folder in reversed(listed):
        try:
            manifest = verify(folder)
        except DamagedError as error:
            log.warning("%s; the checkpoint before it is used", error)
            continue
        if not manifest.resumable:
            log.warning("%s holds weights only (save_only_model) and cannot be resumed", folder)
            continue
        check_setting(folder, manifest, setting, force=force)
        return folder
    if checkpoints(output_dir) != listed:  # a running run has written a newer checkpoint, and deleted a listed one
        return find_resumable(output_dir, setting, force=force)
    return None


def check_setting(folder: Path, manifest: Manifest, setting: RunFingerprint, *, force: bool = False) -> None:
    """Refuses a checkpoint with another fingerprint; with ``force``, warns.

    Raises:
        UsageError: with every difference.
    """
    differences = manifest.setting.differences(setting)
    if differences and force:
        for difference in differences:
            log.warning("resuming from %s because of --force: %s", folder, difference)
    elif differences:
        hint = "undo the change, write another output_dir, or resume anyway with ft run --force"
        raise UsageError([Problem(f"this run cannot resume from {folder}", hint=hint), *differences])


def clean(output_dir: Path) -> None:
    """Removes incomplete writes and deletions of runs that have ended. The caller holds the folder's lock."""
    for left in filter(is_staged, output_dir.glob(".tmp-*")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink()


def prune(output_dir: Path, limit: int | None, best: Path | None, last: int | None = None) -> None:
    """Keeps the newest ``limit`` checkpoints, always with the best and the last whole one. Call it after `commit`.

    Folders that ft did not write, or that contain files of others, are neither counted nor deleted.

    Args:
        output_dir: of the run.
        limit: most checkpoints; None for no limit.
        best: the best checkpoint.
        last: step of the newest one. Higher steps are those of an earlier run, and count as the oldest.
    """
    if limit is None:
        return
    whole = [folder for folder in earlier_checkpoints(output_dir) if _looks_whole(folder)]
    if last is not None:
        whole.sort(key=lambda folder: (_step(folder) <= last, _step(folder)))
    kept = {folder.resolve() for folder in whole[-1:]}
    if best is not None:
        kept.add(best.resolve())
    for folder in reversed(whole):
        if len(kept) < limit:
            kept.add(folder.resolve())
    for folder in whole:
        if folder.resolve() not in kept:
            remove(folder)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _looks_whole(folder: Path) -> bool:
    """A fast `verify`: manifest, names and sizes."""
    try:
        manifest = Manifest.read(folder)
    except DamagedError:
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, (size, _) in manifest.files.items()
    )


def remove(folder: Path) -> None:
    """Deletes a checkpoint. It is renamed first, so a kill leaves no incomplete folder under its name."""
    doomed = folder.parent / f".tmp-0-{os.getpid()}"
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)
