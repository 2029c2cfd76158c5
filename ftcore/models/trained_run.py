"""Reads from a run's manifest the model, template and system message that its weights were trained with.

A model answers well only with the template that it was trained with. Other templates are therefore refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcore.errors import Problem, UsageError
from ftcore.utils.json_files import read_object
from ftcore.utils.ownership import RUN_MANIFEST as MANIFEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A run according to its manifest.

    Args:
        folder: the run's folder.
        model: the base model, as in the run's options.
        revision: its revision.
        vocabulary: the options that added tokens to it.
        files: name -> sha256 of the base model's files; empty if unknown.
        adapter: whether the run saved an adapter.
        base_adapters: adapters that were merged into the base model before training.
        finished: whether it finished without error.
        template: full name of its chat template; None for the tokenizer's own.
        sha256: sha256 of the template's source, default system message included.
        default_system: the run's default system message; None for the template's.
    """

    folder: Path
    model: str
    revision: str
    vocabulary: Mapping[str, Any]
    files: Mapping[str, str]
    adapter: bool
    base_adapters: tuple[str, ...]
    finished: bool
    template: str | None
    sha256: str
    default_system: str | None

    def values(self) -> dict[str, Any]:
        """Options to use the model in the way it was trained."""
        values: dict[str, Any] = {}
        if self.template:
            values["template"] = self.template
        # the saved template of a whole model already includes the system message
        if self.default_system is not None and (self.adapter or self.template):
            values["default_system"] = self.default_system
        if self.adapter:
            values |= {"model_name_or_path": self.model, "model_revision": self.revision, **self.vocabulary}
            values["adapter_name_or_path"] = (*self.base_adapters, str(self.folder))
        return values


def read_trained(folder: Path) -> Trained | None:
    """The run that wrote this folder or checkpoint; None if there is no manifest.

    Raises:
        UsageError: if the manifest cannot be read.
    """
    places = [folder, folder.parent] if folder.name.startswith("checkpoint-") else [folder]
    file = next((found for place in places if (found := place / MANIFEST).is_file()), None)
    if file is None:
        return None
    try:
        manifest: Any = read_object(file)
        model, template, data = manifest["model"], manifest["template"], manifest["data"]
        return Trained(
            folder=folder,
            model=model["name_or_path"],
            revision=model["revision"],
            vocabulary=model.get("vocabulary", {}),
            files=model.get("files", {}),
            adapter=manifest["adapter"],
            base_adapters=tuple(manifest["adapters_beneath"]),
            finished=manifest["status"] == "finished",
            template=template["full_name"],
            sha256=template["sha256"],
            default_system=data["default_system"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(Problem(f"{file} cannot be read: {error!r}", hint="write the folder of a run")) from error


def base_of(adapter: Path) -> Mapping[str, Any]:
    """The base model in peft's config of an adapter, as options; empty if there is none."""
    base = adapter_config(adapter).get("base_model_name_or_path")
    return {"model_name_or_path": base} if base else {}


def adapter_config(adapter: Path) -> Mapping[str, Any]:
    """peft's config of an adapter; empty if it cannot be read."""
    try:
        return read_object(adapter / "adapter_config.json")
    except ValueError:
        return {}
