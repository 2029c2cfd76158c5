"""Suggestions are near, in order, and said in one way."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest

import ftcore
from ftcore.utils.suggestions import did_you_mean, near_names, question

KNOWN = ("chatml", "chatglm", "chatglm3", "llama2", "chatml")


def test_the_nearest_come_first_and_once() -> None:
    assert near_names("chatlm", KNOWN) == ["chatglm", "chatglm3", "chatml"]
    assert near_names("chatlm", reversed(KNOWN), most=1) == ["chatglm"]
    assert near_names("chatlm", KNOWN, cutoff=0.9) == ["chatglm"]
    assert near_names("qwen", KNOWN) == []


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], "did you mean a?"),
        (["a", "b"], "did you mean a or b?"),
        (["a", "b", "c"], "did you mean a, b or c?"),
    ],
)
def test_what_is_said(names: Sequence[str], text: str) -> None:
    assert question(names) == text
    assert question(iter(names)) == text


def test_otherwise_something_else_is_said() -> None:
    assert did_you_mean("lama2", KNOWN, "there are many") == "did you mean llama2?"
    assert did_you_mean("qwen", KNOWN, "there are many") == "there are many"
    assert did_you_mean("qwen", []) == ""


def test_nothing_else_looks_for_near_names() -> None:
    root = Path(ftcore.__file__).parent
    found = []
    for folder in (root, root.parent / "plugins" / "ft_plugins"):
        for file in folder.rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
            found += [file.relative_to(root.parent).as_posix()] if "difflib" in imported else []
    assert found == ["ftcore/utils/suggestions.py"]
