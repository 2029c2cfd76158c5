"""Fixtures for plugin authors, found by pytest as soon as ftcore is installed. They import torch only when used."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama and its tokenizer; read it, do not write to it."""
    from ftcore.testing import tiny_model

    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")
