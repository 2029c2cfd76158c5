"""Where an adapter lies: a folder, or what the hub has under its id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from ftcore.plan import Plan

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_folder(plan: Plan, name: str) -> Path:
    """The local folder of an adapter, fetched from the hub where it is not a folder; safetensors only.

    Raises:
        UsageError: when it cannot be fetched, or holds no safetensors; a pickled adapter is not read.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetched(plan, name)
    if missing := [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]:
        hint = "pickled weights (.bin) are not read: convert them with peft's save_pretrained"
        option, where = _named(plan, name)
        raise UsageError(Problem(f"{option}: {name} has no {' and no '.join(missing)}", where, hint))
    return folder


def _fetched(plan: Plan, name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    cache, token = plan.model.cache_dir, plan.model.hf_hub_token
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], cache_dir=cache, token=token))
    except (OSError, ValueError) as error:
        reason, hint = "cannot be fetched", "is the name right, and is the network there?"
        if isinstance(error, GatedRepoError):
            reason, hint = "is gated", "accept its terms on the hub and set HF_TOKEN."
        elif isinstance(error, RepositoryNotFoundError):
            reason, hint = "is not on the hub, or private", "is the name right? For a private one set HF_TOKEN."
        elif isinstance(error, OSError) and error.errno:  # a full disk, for one
            reason = f"cannot be fetched: {error.strerror}"
        option, where = _named(plan, name)
        cure = f"{hint} A folder on this machine serves as well"
        raise UsageError(Problem(f"{option}: adapter {name} {reason}", where, cure)) from error


def _named(plan: Plan, name: str) -> tuple[str, str]:
    """The option that names an adapter, and where it stands."""
    for option, bound in plan.options.items():
        if bound.value == name or (isinstance(bound.value, tuple) and name in bound.value):
            return option, bound.origin
    return "adapter_name_or_path", plan.file
