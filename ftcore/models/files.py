"""The files of a model and its adapters, and digests of their content."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.errors import Problem, UsageError
from ftcore.utils.file_digests import file_sha256

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

_DECIDING = ("config.json", "adapter_config.json", "*.index.json", "*.safetensors", "*.py")
"""Files that determine what a model computes. Tokenizer and template are compared by the resulting rows."""


def source_of(plan: Plan) -> str:
    """The folder or hub id to load from; a plugin's model is downloaded on first use.

    Raises:
        UsageError: the plugin names a function that does not exist.
    """
    if plan.source is not None:
        module, _, function = plan.source.fetch.partition(":")
        try:
            fetch = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            reason = f"the plugin of model {plan.source.name} names {plan.source.fetch!r}, which cannot be imported"
            raise UsageError(Problem(f"{reason}: {error}", plan.where("model_name_or_path"))) from error
        return str(fetch())
    name = str(plan.model.model_name_or_path)
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def base_files(plan: Plan) -> dict[str, str]:
    """Name -> sha256 of the base model's files; empty if the model is neither in a folder nor in the hub's cache.

    The digests are cached (see `file_sha256`); hashing takes about a second per 1.2 GB.
    """
    return _files(_folder(source_of(plan), "config.json", plan, plan.model.model_revision))


def beside_model(plan: Plan, name: str) -> Path | None:
    """A file of the base model, in its folder or in the hub's cache; None if it does not exist."""
    folder = _folder(source_of(plan), "config.json", plan, plan.model.model_revision)
    return folder / name if folder is not None and (folder / name).is_file() else None


def model_files(plan: Plan) -> dict[str, str]:
    """The same for the base model and all its adapters, whose files are named ``ADAPTER/NAME``."""
    found = base_files(plan)
    for name in plan.model.adapter_name_or_path:
        folder = _folder(str(Path(name).expanduser()), "adapter_config.json", plan, None)
        found |= {f"{name}/{file}": digest for file, digest in _files(folder).items()}
    return found


def weights_of(files: Mapping[str, str]) -> set[str]:
    """The digests of weight files."""
    return {digest for name, digest in files.items() if name.endswith(".safetensors")}


def _folder(name: str, file: str, plan: Plan, revision: str | None) -> Path | None:
    """The folder, or the snapshot in the hub's cache that contains this file."""
    if (folder := Path(name)).is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file, cache_dir=plan.model.cache_dir, revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _files(folder: Path | None) -> dict[str, str]:
    if folder is None:
        return {}
    files = sorted({file for pattern in _DECIDING for file in folder.glob(pattern) if file.is_file()})
    return {file.name: file_sha256(file) for file in files}
