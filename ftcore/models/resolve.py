"""Model resolution without the network: a plugin's model, a folder, or the hub's cache, and its config.json."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcore.api.components import ModelFamily, ModelSource
from ftcore.api.plan import RegisteredComponent, Registry
from ftcore.errors import Problem
from ftcore.models.model_config import folder_problems
from ftcore.utils.json_files import read_object
from ftcore.utils.suggestions import did_you_mean

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A resolved model name.

    Args:
        source: set if it is a plugin's model.
        config: config.json; None if it is not on this machine.
        family: the plugin's model family, if it is a plugin's model.
    """

    source: ModelSource | None = None
    config: Mapping[str, Any] | None = None
    family: RegisteredComponent[ModelFamily] | None = None


def resolve_model(
    name: str, plugins: Registry, where: str, cache_dir: str | None = None
) -> tuple[ResolvedModel, list[Problem]]:
    """Resolves ``model_name_or_path``; returns problems if it cannot be resolved."""
    offered = [
        (offer, source)
        for offer in plugins.of(ModelFamily)
        for source in offer.component.models
        if name in (source.name, f"{offer.distribution}:{source.name}")
    ]
    if len(offered) == 1:
        offer, source = offered[0]
        return ResolvedModel(source, source.config, offer), []
    if offered:
        names = " or ".join(f"{offer.distribution}:{source.name}" for offer, source in offered)
        return ResolvedModel(), [Problem(f"model {name!r} is registered more than once", where, f"write {names}")]
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, name, where)
    if path.exists():
        return ResolvedModel(), [Problem(f"model {name!r} is a file, not a folder", where)]
    if HUB_ID.fullmatch(name):
        return _cached(name, cache_dir, where)
    return ResolvedModel(), [Problem(f"model {name!r} does not exist", where, _near(name, plugins))]


def _folder(path: Path, name: str, where: str) -> tuple[ResolvedModel, list[Problem]]:
    file = path / "config.json"
    if not file.is_file():
        is_adapter = (path / "adapter_config.json").is_file()
        hint = "it is an adapter: write it as adapter_name_or_path" if is_adapter else "write a model's folder"
        return ResolvedModel(), [Problem(f"{name} has no config.json", where, hint)]
    try:
        config = read_object(file)
    except ValueError as error:
        return ResolvedModel(), [Problem(f"{file} {error}", where)]
    problems = folder_problems(path, config, where)
    return ResolvedModel(config=None if problems else config), problems


def _near(name: str, plugins: Registry) -> str:
    names = [source.name for offer in plugins.of(ModelFamily) for source in offer.component.models]
    offered = ", ".join(sorted(names)) or "none is installed"
    return did_you_mean(name, names, f"write a folder, a hub id, or a model that a plugin offers ({offered})")


def _cached(name: str, cache_dir: str | None, where: str) -> tuple[ResolvedModel, list[Problem]]:
    """A hub model, with its config.json if it was downloaded before."""
    for file in _snapshot_files(name, "config.json", cache_dir):
        try:
            config = read_object(file)
        except ValueError:
            continue
        problems = folder_problems(file.parent, config, where)
        return ResolvedModel(config=None if problems else config), problems
    return ResolvedModel(), []


def cached_file(name: str, file: str, cache_dir: str | None) -> Path | None:
    """A file of a hub model or adapter that was downloaded before."""
    return next(iter(_snapshot_files(name, file, cache_dir)), None)


def _snapshot_files(name: str, file: str, cache_dir: str | None) -> list[Path]:
    """The paths of a file in all snapshots of the hub's cache (huggingface_hub's layout)."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(cache_dir or os.environ.get("HF_HUB_CACHE") or home / "hub")
    return sorted((cache / f"models--{name.replace('/', '--')}" / "snapshots").glob(f"*/{file}"))


def choose_family(
    located: ResolvedModel, name: str, plugins: Registry, where: str
) -> tuple[RegisteredComponent[ModelFamily] | None, list[Problem]]:
    """The family that fits best; None if none fits; a problem if several fit equally well."""
    if located.family:
        return located.family, []
    offers = plugins.of(ModelFamily)
    scores = [offer.component.matches(located.config or {}, name) for offer in offers]
    best = max(scores, default=0)
    found = [offer for offer, score in zip(offers, scores, strict=True) if score == best > 0]
    if len(found) < 2:
        return (found[0] if found else None), []
    names = " or ".join(sorted(offer.full_name for offer in found))
    return None, [Problem(f"more than one model family fits {name!r}", where, f"write model_family: {names}")]
