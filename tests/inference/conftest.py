"""A loaded tiny model, and plans for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcore.inference.target import find_target


@pytest.fixture(scope="session")
def generator(tiny_model_dir: Path, built_in: Any) -> Any:
    """The tiny model, greedy, 24 tokens."""
    overrides = ["do_sample=false", "max_new_tokens=24"]
    return find_target(None, model=str(tiny_model_dir), overrides=overrides, plugins=built_in).load()


@pytest.fixture
def load(tiny_model_dir: Path, built_in: Any) -> Callable[..., Any]:
    """``load("temperature=0", ...)``: the tiny model with these options."""

    def run(*overrides: str, plugins: Any = None, **more: Any) -> Any:
        target = find_target(None, model=str(tiny_model_dir), overrides=overrides, plugins=plugins or built_in)
        return target.load(**more)

    return run
