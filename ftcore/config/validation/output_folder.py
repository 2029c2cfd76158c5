"""Checks of ``output_dir`` and its content before anything is loaded."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.errors import Problem, listed
from ftcore.utils.ownership import foreign_files, is_ours, named_checkpoints, not_ours
from ftcore.utils.run_status import notice

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


def problems(plan: Plan, where: str) -> Iterable[Problem]:
    """Reasons why nothing can or should be written to the plan's ``output_dir``.

    Args:
        plan: the plan; one that does nothing has no problem here.
        where: the place of the option.
    """
    training, folder = plan.training, plan.output_dir
    if not (training.do_train or training.do_eval or training.do_predict):
        return
    if reason := unusable(folder):
        yield Problem(f"output_dir {folder} {reason}", where, "write another folder")
    elif training.do_train and _is_model(plan):
        reason = "is the folder of model_name_or_path, whose files the run would replace"
        yield Problem(f"output_dir {folder} {reason}", where, "write another folder")
    elif training.do_train and not training.overwrite_output_dir and _has_only_foreign_files(folder):
        hint = "write another folder, or overwrite_output_dir: true, which keeps these files and adds the run's"
        yield Problem(f"output_dir {folder} holds files that no run of ft wrote", where, hint)


def unusable(folder: Path) -> str:
    """Why a run must not write to a folder; empty if it may."""
    try:
        return _unusable(folder)
    except OSError as error:  # no permission to enter a parent folder, or a name that is too long
        return f"cannot be used: {error.strerror}"


def _unusable(folder: Path) -> str:
    for path in (folder, *folder.parents):
        what = "" if path == folder else f"lies under {path}, which "
        if path.is_symlink() and not path.exists():
            return f"{what}is a symbolic link to {path.readlink()}, which does not exist"
        if path.exists() and not path.is_dir():
            return f"{what}is a file" if path.is_file() else f"{what}is not a folder"
        if path.is_dir():
            return _reserved(folder)
    return ""


def _reserved(folder: Path) -> str:
    """Folders that cannot be a run's own, since they hold everything else."""
    real = folder.resolve()
    if real == Path(real.anchor):
        return "is the root of the file system"
    try:
        home = Path.home().resolve()
    except RuntimeError:  # no HOME, and no entry for this user
        return ""
    if real == home:
        return "is your home folder"
    return "holds your home folder" if real in home.parents else ""


def unwritable(folder: Path) -> str:
    """Why a usable folder cannot be written to or created; empty if it can."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    if os.access(existing, os.W_OK | os.X_OK):
        return ""
    read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
    return f"output_dir {folder} is not writable: {os.strerror(errno.EROFS if read_only else errno.EACCES)}"


def _is_model(plan: Plan) -> bool:
    model = Path(str(plan.model.model_name_or_path)).expanduser()
    return plan.source is None and model.is_dir() and model.resolve() == plan.output_dir.resolve()


def _has_only_foreign_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir()) and not is_ours(folder)


def notices(plan: Plan) -> Iterable[str]:
    """Notices about ``output_dir``: files that are not ft's and stay, and a run that writes there or was killed."""
    folder, training = plan.output_dir, plan.training
    if unusable(folder) or not (training.do_train or training.do_eval or training.do_predict):
        return
    if line := unwritable(folder):
        yield line
    if not folder.is_dir():
        return
    if line := notice(folder):
        yield line
    for path in named_checkpoints(folder):
        if reason := not_ours(path):
            yield f"{path} {reason}: it stays, and a run that has to write {path.name} is refused"
    if foreign := foreign_files(folder):
        note = "they stay; if this run writes a file of the same name, the existing one is renamed NAME.before-ft"
        yield f"{folder} holds files that no run of ft wrote: {listed(foreign, 5)}; {note}"
