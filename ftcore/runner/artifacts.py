"""The files of a run besides its weights: the manifest and the results."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.api.plan import Plan
from ftcore.data.fingerprint import data_hashes
from ftcore.models.files import base_files
from ftcore.utils.files import write_json, write_whole
from ftcore.utils.hashing import sha256_of
from ftcore.utils.ownership import RUN_MANIFEST as MANIFEST

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
PACKAGES = ("accelerate", "ftcore", "peft", "safetensors", "tokenizers", "torch", "transformers")


def manifest(
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase,
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of ``ft_run.json``: how the weights were trained, and how to use them in the same way.

    `ftcore.runner.run_record.RunRecord` adds the status of the run.
    """
    from ftcore.config.serialization import as_dict

    source = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    return {
        "format": FORMAT,
        "status": "",
        **as_dict(plan),
        "model": {
            "name_or_path": plan.model.model_name_or_path,
            "revision": plan.model.model_revision,
            "vocabulary": plan.model.vocabulary,
            "files": base_files(plan),
        },
        "adapter": plan.method.component.saves_adapter,
        "adapters_beneath": list(plan.method.component.base_adapters(plan)),
        "template": {
            "name": plan.template.component.name if plan.template else None,
            "full_name": plan.template.full_name if plan.template else None,
            "sha256": sha256_of(source),
        },
        "data": {
            "default_system": plan.data.default_system,
            "files": data_hashes(plan),
        },
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "plugins": {plugin.id: plugin.version for plugin in plan.plugins.listed if plugin.status == "ok"},
        "counts": dict(counts),
        "metrics": {},
    }


def write_results(folder: Path, results: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """Writes ``train_results.json`` and so on, by name, and ``all_results.json`` with all of them."""
    together: dict[str, Any] = {}
    for name, metrics in results.items():
        if metrics:
            write_json(folder / f"{name}_results.json", metrics)
            together |= metrics
    write_json(folder / "all_results.json", together)
    return together


def read_manifest(folder: Path) -> bytes | None:
    """The bytes of ``ft_run.json``; None if it does not exist."""
    file = folder / MANIFEST
    return file.read_bytes() if file.is_file() else None


def put_back(folder: Path, content: bytes | None) -> None:
    """Restores ``ft_run.json`` to what `read_manifest` returned."""
    if content is None:
        (folder / MANIFEST).unlink()
    else:
        write_whole(folder / MANIFEST, content)


def write_manifest(folder: Path, value: Mapping[str, Any]) -> None:
    """Writes ``ft_run.json``."""
    write_json(folder / MANIFEST, value)
