"""What is wrong with an ``output_dir``, and what lies there, said before anything is loaded."""

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
    """Why nothing can, or should, be written to the plan's ``output_dir``.

    Args:
        plan: of a run; a plan that does nothing is not asked.
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
    elif training.do_train and not training.overwrite_output_dir and _strange(folder):
        hint = "write another folder, or overwrite_output_dir: true, which leaves them and writes beside them"
        yield Problem(f"output_dir {folder} holds files that no run of ft left", where, hint)


def unusable(folder: Path) -> str:
    """Why no run may write to a folder; empty where one may."""
    try:
        return _unusable(folder)
    except OSError as error:  # a folder above it that may not be looked into, a name that is too long
        return f"cannot be used: {error.strerror}"


def _unusable(folder: Path) -> str:
    for path in (folder, *folder.parents):
        what = "" if path == folder else f"lies under {path}, which "
        if path.is_symlink() and not path.exists():
            return f"{what}is a symbolic link to {path.readlink()}, which does not exist"
        if path.exists() and not path.is_dir():
            return f"{what}is a file" if path.is_file() else f"{what}is no folder"
        if path.is_dir():
            return _reserved(folder)
    return ""


def _reserved(folder: Path) -> str:
    """Folders that hold too much else to be a run's own."""
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
    """Why nothing can be written to a folder that is usable, or be made where it is to be; empty where it can."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    if os.access(existing, os.W_OK | os.X_OK):
        return ""
    read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
    return f"nothing can be written to output_dir {folder}: {os.strerror(errno.EROFS if read_only else errno.EACCES)}"


def _is_model(plan: Plan) -> bool:
    model = Path(str(plan.model.model_name_or_path)).expanduser()
    return plan.source is None and model.is_dir() and model.resolve() == plan.output_dir.resolve()


def _strange(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir()) and not is_ours(folder)


def notices(plan: Plan) -> Iterable[str]:
    """What lies in ``output_dir`` and is not ft's: it stays; and a run that writes there, or was killed there."""
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
            yield f"{path} {reason}: it stays, and a run that would have to write {path.name} there does not begin"
    if strange := foreign_files(folder):
        kept = "they stay; where this run writes a file of the same name, the earlier one is kept as NAME.before-ft"
        yield f"{folder} holds files that no run of ft wrote: {listed(strange, 5)}; {kept}"
