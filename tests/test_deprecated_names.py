"""Old names of modules and classes: the same objects, with a warning that says the new name."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from ftcore import deprecated_names
from ftcore.deprecated_names import ATTRIBUTES, MODULES

NAMES = [(module, name, place) for module, names in ATTRIBUTES.items() for name, place in names.items()]


@pytest.fixture(autouse=True)
def _as_if_new() -> Iterator[None]:
    """Old modules are imported once in a process."""
    yield
    for name in [*MODULES, "ftcore.engine"]:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("old", MODULES)
def test_an_old_module_forwards_everything_and_says_the_new_name(old: str) -> None:
    new = MODULES[old]
    there = importlib.import_module(new)  # what it imports may warn too
    with pytest.warns(DeprecationWarning, match="since ftcore 0") as caught:
        module = importlib.import_module(old)
    assert [str(one.message) for one in caught] == [f"{old} is {new} since ftcore 0.2; the old name goes in 0.3"]
    public = [name for name in vars(there) if not name.startswith("_")]
    assert public
    assert all(getattr(module, name) is getattr(there, name) for name in public if name not in ATTRIBUTES.get(old, {}))


@pytest.mark.parametrize(("old", "name", "place"), NAMES, ids=[f"{module}.{name}" for module, name, _ in NAMES])
def test_an_old_name_is_the_same_object(old: str, name: str, place: str) -> None:
    new, _, attribute = place.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = importlib.import_module(old)
    with pytest.warns(DeprecationWarning, match="since ftcore 0") as caught:
        found = getattr(module, name)
    assert found is getattr(importlib.import_module(new), attribute)
    assert [str(one.message) for one in caught] == [
        f"{old}.{name} is {new}.{attribute} since ftcore 0.2; the old name goes in 0.3"
    ]


@pytest.mark.slow
def test_the_warning_names_the_line_that_imports() -> None:
    imports = "from ftcore.components import Stage\nfrom ftcore.engine.trainer import Trainer\n"
    code = f"{imports}print(Stage.__module__)"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    said = [line for line in done.stderr.splitlines() if "since ftcore 0.2" in line]
    assert said == [
        "<string>:1: DeprecationWarning: ftcore.components is ftcore.api.components since ftcore 0.2; "
        "the old name goes in 0.3",
        "<string>:2: DeprecationWarning: ftcore.engine.trainer is ftcore.training.trainer since ftcore 0.2; "
        "the old name goes in 0.3",
    ]
    assert done.stdout == "ftcore.api.plan\n"


def test_what_never_was_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"ftcore\.nothing"):
        importlib.import_module("ftcore.nothing")
    with pytest.raises(AttributeError, match=r"module 'ftcore\.inference' has no attribute 'Nothing'"):
        deprecated_names.forwarded("ftcore.inference", "Nothing")


def test_a_plan_still_says_where_by_the_old_function() -> None:
    class Plan:
        def where(self, option: str) -> str:
            return f"x.yaml:{len(option)}"

    with pytest.warns(DeprecationWarning, match="the old name goes"):
        from ftcore.checks import place
    assert place(Plan(), "abc") == "x.yaml:3"
