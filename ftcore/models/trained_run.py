"""What a run of ours left in a folder: the model, template and system message that its weights were trained with.

Weights answer well only in the form in which they were trained, so this is read from the run's manifest, and a
conversation in another form is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, UsageError
from ftcore.utils.json_files import read_object
from ftcore.utils.ownership import RUN_MANIFEST as MANIFEST

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a manifest says of a run.

    Args:
        folder: where it lies.
        model: base model, as the run was told.
        revision: of it.
        vocabulary: options by which it got new tokens.
        files: name -> sha256 of the base model's files; empty where nobody knew.
        adapter: whether the run left an adapter.
        base_adapters: adapters that were merged into the base model under it.
        finished: whether it ended well.
        template: full name of its chat template; None for the tokenizer's own.
        sha256: of the template's source, default system message included.
        default_system: the run's own; None for the template's.
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
        """Options that put a conversation in the form that was trained."""
        values: dict[str, Any] = {}
        if self.template:
            values["template"] = self.template
        # a whole model's own template has the system message in it already
        if self.default_system is not None and (self.adapter or self.template):
            values["default_system"] = self.default_system
        if self.adapter:
            values |= {"model_name_or_path": self.model, "model_revision": self.revision, **self.vocabulary}
            values["adapter_name_or_path"] = (*self.base_adapters, str(self.folder))
        return values


def read_trained(folder: Path) -> Trained | None:
    """The run that left this folder, or of which it is a checkpoint; None where there is no manifest.

    Raises:
        UsageError: when the manifest cannot be read.
    """
    places = [folder, folder.parent] if folder.name.startswith("checkpoint-") else [folder]
    file = next((found for place in places if (found := place / MANIFEST).is_file()), None)
    if file is None:
        return None
    try:
        said: Any = read_object(file)
        model, template, data = said["model"], said["template"], said["data"]
        return Trained(
            folder=folder,
            model=model["name_or_path"],
            revision=model["revision"],
            vocabulary=model.get("vocabulary", {}),
            files=model.get("files", {}),
            adapter=said["adapter"],
            base_adapters=tuple(said["adapters_beneath"]),
            finished=said["status"] == "finished",
            template=template["full_name"],
            sha256=template["sha256"],
            default_system=data["default_system"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(Problem(f"{file} cannot be read: {error!r}", hint="is it the manifest of a run?")) from error


def base_of(adapter: Path) -> Mapping[str, Any]:
    """The base model that peft wrote into an adapter, as options; empty where it says none."""
    base = adapter_config(adapter).get("base_model_name_or_path")
    return {"model_name_or_path": base} if base else {}


def adapter_config(adapter: Path) -> Mapping[str, Any]:
    """What peft wrote about an adapter; empty where it cannot be read."""
    try:
        return read_object(adapter / "adapter_config.json")
    except ValueError:
        return {}
