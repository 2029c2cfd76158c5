"""Plugins as strangers would write them, in runs; none of them needs a change of the core."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ftcore.api.registry import Plugins

HERE = Path(__file__).parent


def code_lines(name: str) -> int:
    """Lines of a plugin without blank lines and docstrings of the module."""
    lines = (HERE / f"{name}.py").read_text().partition('"""\n\n')[2].splitlines()
    return sum(bool(line.strip()) for line in lines)


@pytest.fixture
def stranger(with_plugins: Callable[..., Plugins]) -> Callable[[str], Plugins]:
    """``stranger("reinforce")``: the built-ins and the plugin of this folder, in a distribution of its own."""

    def load(name: str) -> Plugins:
        return with_plugins(**{name: module(name)})

    return load


@cache
def module(name: str) -> ModuleType:
    """A plugin of this folder."""
    spec = importlib.util.spec_from_file_location(f"strangers_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Eight questions and answers."""
    rows = [{"instruction": f"question {number}", "output": f"answer {number * 7}"} for number in range(8)]
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    return tmp_path / "chats.json"


@pytest.fixture
def values(tiny_model_dir: Path, chats: Path, tmp_path: Path) -> dict[str, Any]:
    """Options of a run over these rows."""
    return {
        "model_name_or_path": str(tiny_model_dir),
        "dataset": str(chats),
        "template": "chatml",
        "do_train": True,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "output_dir": str(tmp_path / "out"),
    }
