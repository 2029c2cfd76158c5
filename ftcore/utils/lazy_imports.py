"""Packages that others import and a run may never use: their code is read when something of them is asked for."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import RLock
from types import ModuleType
from typing import Any

_reading = RLock()
_put_off: set[str] = set()


class _PutOff(ModuleType):
    """Stands in ``sys.modules`` until an attribute is wanted that every module does not have.

    importlib.util.LazyLoader's modules are read as soon as anybody imports them or asks whether they are installed:
    both look at ``__spec__``. Submodules wait for the whole package, since they need its ``__path__``.
    """

    def __getattr__(self, name: str) -> Any:
        with _reading:
            if type(self) is _PutOff:
                _read(self)
        return getattr(self, name)


def _read(module: ModuleType) -> None:
    spec = module.__spec__
    assert spec is not None
    assert spec.loader is not None
    module.__class__ = ModuleType
    if spec.submodule_search_locations is not None:
        module.__path__ = spec.submodule_search_locations
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(module.__name__, None)
        raise


class _Found(MetaPathFinder):
    """Finds submodules that the import system is looking for and that their package has imported meanwhile.

    It asks for the package's ``__path__``, which reads the package, and would then read the submodule once more.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        module = sys.modules.get(name)
        if module is None or target is not None or name.partition(".")[0] not in _put_off:
            return None
        return importlib.util.spec_from_loader(name, _There(module))


class _There(Loader):
    """Leaves a module as it is."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


_found = _Found()


def defer_import(name: str) -> None:
    """From now on ``import name`` costs nothing until the module is used; nothing where it is there or not installed.

    Args:
        name: of a package at the top.
    """
    spec = None
    with suppress(ImportError, ValueError):
        spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    module = _PutOff(name, f"{name}, not read yet")
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    _put_off.add(name)
    if _found not in sys.meta_path:
        sys.meta_path.insert(0, _found)
    sys.modules[name] = module
