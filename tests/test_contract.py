"""The architecture, guarded."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import ftcore
from ftcore.api import hookspecs
from ftcore.api.components import KINDS
from ftcore.api.registry import HOOKS

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "ftcore").rglob("*.py"))
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "numpy", "accelerate", "matplotlib", "safetensors")
HOOK_NAMES = sorted(name for name in dir(hookspecs) if name.startswith("ft_"))


COLD = f"""
import json, os, sys
from ftcore.cli import main
from ftcore.api.registry import load
load()
for line in sys.stdin:
    reading, writing = os.pipe()
    if not os.fork():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = "an exception"
        try:
            main(json.loads(line))
        except SystemExit as end:
            status = end.code or 0
        finally:
            heavy = [name for name in {HEAVY!r} if name in sys.modules]
            os.write(writing, json.dumps([status, heavy]).encode())
            os._exit(0)
    os.close(writing)
    print(os.read(reading, 10_000).decode(), flush=True)
    os.wait()
"""
"""A process that has imported ``ft`` and does each command in a fork: prints its status, and what it imported."""


@pytest.fixture(scope="module")
def cold() -> Iterator[Callable[[list[str]], Any]]:
    """``cold(words)``: exit status of ``ft`` with these words, and the heavy packages that it imported."""
    with subprocess.Popen([sys.executable, "-c", COLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin
        assert server.stdout

        def ask(words: list[str]) -> Any:
            server.stdin.write(json.dumps(words).encode() + b"\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield ask


@pytest.mark.parametrize(
    "words",
    [["--help"], ["plugins", "list"], ["plugins", "show", "adamw"], ["options"], ["options", "--schema"],
     ["plan", "{file}"], ["run", "--dry-run", "{file}"], ["env"], ["chat", "--help"], ["generate", "--help"],
     ["preview", "--help"], ["export", "--help"], ["serve", "--help"]],
    ids=" ".join,
)  # fmt: skip
def test_cold_commands_import_nothing_heavy(words: list[str], cold: Any, write_config: Any) -> None:
    assert cold([word.format(file=write_config()) for word in words]) == [0, []]


def test_the_core_names_no_built_in(built_in) -> None:
    """Strings and imports of ftcore: no name or alias of a component, and nothing of ft_plugins.

    Names that are also words of English or of transformers' own (model types, whose shapes the memory estimate knows)
    are no sign of anything.
    """
    from ftcore.api.components import Backend
    from ftcore.cli.env import PACKAGES
    from ftcore.export.gguf_vocabulary import SPLITS
    from ftcore.resources import experts
    from ftcore.resources.model_shapes import LAYOUTS

    common = {
        "messages",
        "text",
        "local",
        "full",
        "none",
        "default",
        "instruction",
        "transformers",
        "empty",
        "index",
        "huggingface",
        "hf",
        "reference",
        *(device for offer in built_in.of(Backend) for device in offer.component.devices),  # torch's names
        *LAYOUTS,
        *experts.LAYOUTS,
        *PACKAGES,
        *SPLITS.values(),
    }
    names = {n for offer in built_in.offers for n in (offer.component.name, *offer.component.aliases)} - common
    found = []
    for file in CORE:
        tree = ast.parse(file.read_text("utf-8"))
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                found += [
                    f"{file.name}:{node.lineno}: {node.value}"
                    for word in re.findall(r"[\w.-]+", node.value)
                    if word in names
                ]
            elif isinstance(node, ast.ImportFrom | ast.Import):
                found += [f"{file.name}:{node.lineno}" for alias in node.names if "ft_plugins" in alias.name]
                found += [f"{file.name}:{node.lineno}"] * ("ft_plugins" in (getattr(node, "module", "") or ""))
    assert found == []


def test_every_kind_has_its_hook() -> None:
    assert set(HOOKS) == set(KINDS)
    assert set(HOOKS.values()) <= set(HOOK_NAMES)


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_every_hook_is_tested(name: str) -> None:
    tests = "\n".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py") if file != Path(__file__))
    assert re.search(rf"\b{name}\b", tests)


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_every_hook_is_documented_with_its_signature(name: str) -> None:
    signature = f"{name}({', '.join(inspect.signature(getattr(hookspecs, name)).parameters)})"
    assert signature in (ROOT / "docs" / "hooks.md").read_text("utf-8")
    assert getattr(hookspecs, name).__doc__


def test_components_are_frozen_and_documented(built_in) -> None:
    for offer in built_in.offers:
        with pytest.raises(AttributeError):
            offer.component.name = "other"
        for name, field in offer.component.Options.model_fields.items():
            assert field.description, f"{offer.full_name}: option {name} says nothing of itself"


def test_every_option_of_the_core_is_documented() -> None:
    from ftcore.api.option_groups import GROUPS

    assert [
        name for group in GROUPS.values() for name, field in group.model_fields.items() if not field.description
    ] == []


def test_no_option_has_two_owners_among_the_built_ins(built_in) -> None:
    """But for components of one kind, of which a run uses one."""
    from ftcore.config.binding import owners

    kinds: dict[str, set[str]] = {}
    for owner, group in owners(built_in).items():
        for name in group.model_fields:
            kinds.setdefault(name, set()).add(owner.rpartition(" ")[0] or owner)
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}


def test_the_version_is_that_of_the_newest_section_of_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    newest = re.findall(r"^## \[(\d\S*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[0]
    assert ftcore.__version__ == project["version"] == newest


def pinned(package: str) -> str:
    """The version of constraints.txt."""
    found = re.search(rf"^{package}==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    assert found
    return found[1]


@pytest.mark.slow
@pytest.mark.skipif(
    version("transformers") != pinned("transformers"),
    reason="hf_training_arguments.json describes the transformers of constraints.txt",
)
def test_generated_pages_are_in_step() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


TESTS = sorted(file for folder in ("tests", "contrib", "benchmarks") for file in (ROOT / folder).rglob("*.py"))


@cache
def nodes(code: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(code)))


def dotted_targets(code: str) -> list[int]:
    """Lines that replace something by a dotted path in a string, which no tool follows when a module moves."""
    found = []
    for node in nodes(code):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            written = isinstance(node.args[0], ast.JoinedStr) or isinstance(getattr(node.args[0], "value", None), str)
            if name in {"setattr", "delattr", "patch"} and written:
                found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('monkeypatch.setattr("a.b", 1)', [1]),
        ('with context() as patch:\n    patch.setattr(f"a.{name}", 1)', [2]),
        ('monkeypatch.delattr("a.b")', [1]),
        ('mock.patch("a.b", 1)', [1]),
        ('monkeypatch.setattr(a, "b", 1)', []),
        ('mock.patch.object(a, "b", 1)', []),
        ('setattr(a, "b", 1)', []),
        ('monkeypatch.setenv("a.b", "1")', []),
    ],
)
def test_what_a_dotted_target_is(code: str, expected: list[int]) -> None:
    assert dotted_targets(code) == expected


CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
CLOCKS |= {"process_time", "process_time_ns", "thread_time", "thread_time_ns"}
DATES = {"time", "time_ns"}
"""What day it is may be asked, for the age of a file, but not asserted."""


def clocks(code: str) -> list[int]:
    """Lines that read a clock, by any of the ways to import one."""
    found = []
    asserted = {id(node) for outer in nodes(code) if isinstance(outer, ast.Assert) for node in ast.walk(outer)}
    for node in nodes(code):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "time":
            found += [node.lineno] * (node.attr in CLOCKS or (node.attr in DATES and id(node) in asserted))
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [node.lineno for alias in node.names if alias.name in CLOCKS | DATES]
    return found


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("began = time.monotonic()", [1]),
        ("import time\nassert time.perf_counter() < 3", [2]),
        ("from time import process_time as clock", [1]),
        ("assert time.time() < 3", [1]),
        ("made = time.time() - 60", []),
        ("time.sleep(1)", []),
        ("from time import sleep", []),
        ("datetime.time()", []),
    ],
)
def test_what_reading_a_clock_is(code: str, expected: list[int]) -> None:
    assert clocks(code) == expected


def test_no_test_reads_a_clock() -> None:
    """A busy machine lengthens every time: tests count work and wait for events; `benchmarks/` measures."""
    files = [file for file in TESTS if file.name.startswith("test_")]
    assert [f"{file.relative_to(ROOT)}:{line}" for file in files for line in clocks(file.read_text("utf-8"))] == []


def test_no_test_replaces_by_a_dotted_path() -> None:
    assert [
        f"{file.relative_to(ROOT)}:{line}" for file in TESTS for line in dotted_targets(file.read_text("utf-8"))
    ] == []
