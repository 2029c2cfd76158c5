"""Disk space: checked before the first step, and reported where a file could not be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ftcore.data.multimodal.images import save_processor
from ftcore.errors import RunError
from ftcore.utils.files import flush
from ftcore.utils.ownership import keep_aside

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


def weight_bytes(plan: Plan, model: Any) -> int:
    """Estimated bytes of the trained weights on disk."""
    tensors = model.parameters()
    if plan.method.component.saves_adapter:
        tensors = (tensor for tensor in tensors if tensor.requires_grad)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def checkpoint_bytes(plan: Plan, model: Any) -> int:
    """Estimated bytes of a checkpoint: weights and optimizer state."""
    trained = sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
    state = 0 if plan.training.save_only_model else int(plan.optimizer.component.state_bytes * trained)
    return weight_bytes(plan, model) + state


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder that exists or will be created."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free


def check_room(folder: Path, needed: int, what: str) -> None:
    """Stops the run before it computes what could not be saved.

    Args:
        folder: to write into.
        needed: required bytes.
        what: what is saved, for the message.

    Raises:
        RunError: with the bytes needed and free.
    """
    if (free := free_bytes(folder)) < needed:
        raise RunError(f"{folder} needs {needed:,} bytes for {what}, and {free:,} are free")


@contextmanager
def writing(what: str, folder: Path, needed: int) -> Iterator[None]:
    """Turns errors while writing files into one message.

    Args:
        what: what is written, for the message.
        folder: where it is written.
        needed: estimated bytes.

    Raises:
        RunError: with both, the cause, and the bytes needed and free.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors writes in Rust and has its own error for a full disk
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        room = f"it needs about {needed:,} bytes, {free_bytes(folder):,} are free"
        raise RunError(f"{what} could not be written to {folder}: {cause}; {room}") from error


def save_trained(plan: Plan, model: Any, tokenizer: Any, pictures: Any = None, *, foreign: Sequence[str] = ()) -> None:
    """Saves the trained weights into the run's folder: staged, flushed, and moved into place file by file.

    Args:
        plan: of the run.
        model: the trained model.
        tokenizer: saved with it.
        pictures: whose processor is saved too.
        foreign: names in the folder that ft did not write; see `ftcore.utils.ownership.keep_aside`.

    Raises:
        RunError: they cannot be written; earlier files are unchanged.
    """
    folder, staged = plan.output_dir, plan.output_dir / f".tmp-trained-{os.getpid()}"
    try:
        with writing("what was trained", folder, weight_bytes(plan, model)):
            staged.mkdir(parents=True, exist_ok=True)
            plan.method.component.save(model, staged)
            tokenizer.save_pretrained(staged)
            if pictures is not None:
                save_processor(pictures.processor, staged)
            _move(staged, folder, foreign)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _move(staged: Path, folder: Path, foreign: Sequence[str]) -> None:
    for file in sorted(path for path in staged.rglob("*") if path.is_file()):
        flush(file)
        target = folder / file.relative_to(staged)
        if target.name in foreign and target.parent == folder:
            keep_aside(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
