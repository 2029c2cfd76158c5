"""Finds plugins by their entry points and looks up their components. Clashes and broken plugins are reported.

The entry points are loaded here, not by pluggy: pluggy 1.7.0 skips the second of two entry points with the same name,
so another package could silently replace a built-in plugin.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pluggy

from ftcore.api import hookspecs
from ftcore.api.components import (
    Backend,
    ChatTemplate,
    Component,
    DatasetFormat,
    InferenceEngine,
    Launcher,
    Method,
    ModelFamily,
    Optimizer,
    OptionGroup,
    Stage,
)
from ftcore.api.plan import Listed, RegisteredComponent
from ftcore.errors import Problem, UsageError, quoted
from ftcore.utils.suggestions import did_you_mean

GROUP = "ftcore"
C = TypeVar("C", bound=Component)

HOOKS: Mapping[type[Component], str] = {
    DatasetFormat: "ft_dataset_formats",
    ChatTemplate: "ft_chat_templates",
    ModelFamily: "ft_model_families",
    Method: "ft_methods",
    Stage: "ft_stages",
    Optimizer: "ft_optimizers",
    Launcher: "ft_launchers",
    InferenceEngine: "ft_inference_engines",
    Backend: "ft_backends",
}
"""Kind -> the hook that registers components of it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plugin before it is loaded: ``load`` imports it."""

    distribution: str
    version: str
    entry: str
    load: Any

    @property
    def id(self) -> str:
        """``distribution/entry-point``."""
        return f"{self.distribution}/{self.entry}"


class Plugins:
    """The installed plugins. An instance is passed as an argument; there is no global one."""

    def __init__(
        self, manager: pluggy.PluginManager, listed: Sequence[Listed], offers: Sequence[RegisteredComponent[Any]]
    ) -> None:
        self.manager, self.listed, self.offers = manager, tuple(listed), tuple(offers)

    @property
    def hook(self) -> Any:
        """pluggy's caller: ``plugins.hook.ft_load_model(plan=..., kwargs=...)``."""
        return self.manager.hook

    @property
    def broken(self) -> tuple[Listed, ...]:
        """Plugins that could not be loaded, or not in full."""
        return tuple(plugin for plugin in self.listed if plugin.status not in ("ok", "disabled"))

    def of(self, kind: type[C]) -> tuple[RegisteredComponent[C], ...]:
        """All components of one kind."""
        return tuple(offer for offer in self.offers if isinstance(offer.component, kind))

    def find(self, kind: type[C], name: str, where: str = "") -> RegisteredComponent[C]:
        """The one component that ``name`` selects: a name, an alias or a full name.

        Raises:
            UsageError: if there is none (similar names and broken plugins are listed), or more than one.
        """
        offers = self.of(kind)
        found = [offer for offer in offers if name in (offer.full_name, offer.component.name, *offer.component.aliases)]
        if len(found) == 1:
            return found[0]
        label = kind.kind.replace("_", " ")
        if found:
            raise UsageError(_clash(f"{label} {quoted(name)} is registered by", found, where))
        raise UsageError(Problem(f"unknown {label} {quoted(name)}", where, self._what_exists(name, offers)))

    def default(self, kind: type[C], where: str = "") -> RegisteredComponent[C]:
        """The component that is used if the file selects none.

        Raises:
            UsageError: if no plugin, or more than one, registers a default.
        """
        found = [offer for offer in self.of(kind) if offer.component.default]
        label = kind.kind.replace("_", " ")
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(_clash(f"a default {label} is registered by", found, where))
        raise UsageError(Problem(f"no default {label} is installed", where, self._broken_hint()))

    def for_devices(self, devices: Sequence[str], where: str = "") -> RegisteredComponent[Backend]:
        """The backend that is used on one of these types of device if the file names none.

        Raises:
            UsageError: if no plugin, or more than one, registers one.
        """
        label = f"a backend for {' or '.join(devices)}"
        found = [offer for offer in self.of(Backend) if set(devices).intersection(offer.component.devices)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(_clash(f"{label} is registered by", found, where))
        named = self.usable_backends(devices)
        parts = [f"write backend: {' or '.join(named)}" if named else "", self._broken_hint()]
        raise UsageError(Problem(f"{label} is not installed", where, "; ".join(part for part in parts if part)))

    def usable_backends(self, devices: Sequence[str]) -> list[str]:
        """Full names of the backends that a file may name on one of these types of device."""
        offers = self.of(Backend)
        return sorted(o.full_name for o in offers if not all(o.component.unsupported(device) for device in devices))

    def commands(self) -> dict[str, list[tuple[str, str]]]:
        """Command name -> ``(plugin id, module:attribute)`` of each plugin that registers it."""
        commands: dict[str, list[tuple[str, str]]] = {}
        for implementation in self.hook.ft_commands.get_hookimpls():
            for name, target in implementation.function().items():
                commands.setdefault(name, []).append((implementation.plugin_name, target))
        return commands

    def _what_exists(self, name: str, offers: Sequence[RegisteredComponent[Any]]) -> str:
        names = sorted({known for offer in offers for known in (offer.component.name, *offer.component.aliases)})
        parts = [did_you_mean(name, names, f"write one of {', '.join(names)}" if names else "none is installed")]
        if broken := self._broken_hint():
            parts.append(broken)
        return "; ".join(parts)

    def _broken_hint(self) -> str:
        return "; ".join(f"plugin {plugin.id} is broken and may contain it: {plugin.status}" for plugin in self.broken)


def _clash(head: str, found: Sequence[RegisteredComponent[Any]], where: str) -> Problem:
    distributions = " and ".join(sorted({offer.distribution for offer in found}))
    names = " or ".join(sorted(offer.full_name for offer in found))
    return Problem(f"{head} {distributions}", where, f"write the full name: {names}")


def installed() -> list[Candidate]:
    """All entry points of the group ``ftcore``, each once even if a distribution is twice on the path."""
    candidates: dict[str, Candidate] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        distribution = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else ""
        candidate = Candidate(distribution, version, entry.name, entry.load)
        candidates.setdefault(candidate.id, candidate)
    return list(candidates.values())


def load(candidates: Iterable[Candidate] | None = None, disabled: Iterable[str] | None = None) -> Plugins:
    """Loads plugins; a broken plugin is listed with its problem, and the others are loaded.

    Args:
        candidates: used instead of the installed ones, for tests.
        disabled: plugin ids or distributions; unset, ``FT_DISABLE_PLUGINS`` (comma separated).
    """
    if disabled is None:
        disabled = os.environ.get("FT_DISABLE_PLUGINS", "").split(",")
    off = {name.strip() for name in disabled}
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    listed: list[Listed] = []
    offers: list[RegisteredComponent[Any]] = []
    for candidate in installed() if candidates is None else candidates:
        if off & {candidate.id, candidate.distribution}:
            listed.append(Listed(candidate.id, candidate.distribution, candidate.version, "disabled"))
            continue
        problems = _register(manager, candidate)
        if not problems:
            found, problems = _collect(manager, candidate)
            offers += found
        status = "; ".join(problems) or "ok"
        listed.append(Listed(candidate.id, candidate.distribution, candidate.version, status))
    manager.check_pending()
    return Plugins(manager, listed, offers)


def _register(manager: pluggy.PluginManager, candidate: Candidate) -> list[str]:
    """Imports and registers one plugin; returns its problems."""
    try:
        plugin = candidate.load()
    # an import may raise anything, SystemExit included, and must not end ft
    except (Exception, SystemExit) as error:
        return [f"import failed: {type(error).__name__}: {_one_line(error)}"]
    try:
        manager.register(plugin, candidate.id)
    except pluggy.PluginValidationError as error:
        if manager.has_plugin(candidate.id):
            manager.unregister(name=candidate.id)
        return [_one_line(error)]
    except ValueError:
        return ["another entry point names the same plugin"]
    unknown = [call.name for call in manager.get_hookcallers(plugin) or () if not call.has_spec()]
    if not unknown:
        return []
    manager.unregister(plugin)
    known = [name for name in dir(hookspecs) if name.startswith("ft_")]
    near = {name: did_you_mean(name, known, most=1) for name in unknown}
    return [f"unknown hook {name}" + (f"; {near[name]}" if near[name] else "") for name in unknown]


def _collect(manager: pluggy.PluginManager, candidate: Candidate) -> tuple[list[RegisteredComponent[Any]], list[str]]:
    offers: list[RegisteredComponent[Any]] = []
    problems: list[str] = []
    for kind, hook in HOOKS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            if implementation.plugin_name != candidate.id:
                continue
            try:
                components = tuple(implementation.function())
            except Exception as error:
                problems.append(f"{hook} failed: {type(error).__name__}: {_one_line(error)}")
                continue
            for component in components:
                if wrong := _wrong(kind, component):
                    problems.append(f"{hook} returns {getattr(component, 'name', component)!r}: {wrong}")
                else:
                    offers.append(
                        RegisteredComponent(component, candidate.distribution, candidate.version, candidate.id)
                    )
    return offers, problems


def _wrong(kind: type[Component], component: object) -> str:
    if not isinstance(component, kind):
        return f"it is {type(component).__name__}, not a {kind.__name__}"
    if not isinstance(component.name, str) or not component.name or ":" in component.name or "," in component.name:
        return "its name must be a string without ':' and ','"
    if not isinstance(component.summary, str) or not component.summary:
        return "it has no summary"
    if not (isinstance(component.Options, type) and issubclass(component.Options, OptionGroup)):
        return "its Options must be a subclass of ftcore.api.components.OptionGroup"
    if old := [name for name in kind.renamed if hasattr(component, name)]:
        return f"since ftcore 0.2 {', '.join(f'{name} is {kind.renamed[name]}' for name in old)}"
    return ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
