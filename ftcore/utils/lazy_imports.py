"""Deferred imports: a package's code is loaded when one of its attributes is first used."""

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
    """A placeholder in ``sys.modules`` that loads the module when an attribute is used that not every module has.

    importlib.util.LazyLoader loads a module on every import and on checks whether it is installed, since both read
    ``__spec__``. A submodule loads the whole package first, since it needs the package's ``__path__``.
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
    """Finds submodules that their package has imported already.

    The import system reads the package's ``__path__``, which loads the package, and would load the submodule twice.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        module = sys.modules.get(name)
        if module is None or target is not None or name.partition(".")[0] not in _put_off:
            return None
        return importlib.util.spec_from_loader(name, _There(module))


class _There(Loader):
    """A loader that returns an existing module."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


_found = _Found()


def defer_import(name: str) -> None:
    """Defers ``import name`` until the module is used. No effect if it is already imported or not installed.

    Args:
        name: name of a top-level package.
    """
    spec = None
    with suppress(ImportError, ValueError):
        spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    module = _PutOff(name, f"{name}, not loaded yet")
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    _put_off.add(name)
    if _found not in sys.meta_path:
        sys.meta_path.insert(0, _found)
    sys.modules[name] = module
