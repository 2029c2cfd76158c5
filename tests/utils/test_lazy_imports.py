"""Packages that are read when something of them is asked for, and not before."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftcore.utils.lazy_imports import defer_import

NAME = "ft_test_heavy"


@pytest.fixture
def heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """``heavy()``: makes a package and puts it off; the list of its modules that have been read, which grows."""

    def make(body: str = f"from {NAME}.part import value\n") -> list[str]:
        (tmp_path / NAME).mkdir()
        note = "import sys\nsys.ft_read.append(__name__)\n"
        (tmp_path / NAME / "__init__.py").write_text(note + body)
        (tmp_path / NAME / "part.py").write_text(note + "value = 7\n")
        read: list[str] = []
        monkeypatch.setattr(sys, "ft_read", read, raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))
        defer_import(NAME)
        return read

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
        del sys.modules[name]


def test_importing_and_asking_read_nothing(heavy: Any) -> None:
    read = heavy()
    module = importlib.import_module(NAME)
    spec = importlib.util.find_spec(NAME)
    assert spec is not None
    assert spec.origin == module.__file__
    assert read == []


@pytest.mark.parametrize(
    "use", ["NAME.value", "__import__('NAME.part').part.value", "__import__('NAME', fromlist=['value']).value"]
)
def test_it_is_read_once_when_it_is_used(use: str, heavy: Any) -> None:
    """Also by way of a submodule, before which the package itself is read."""
    read = heavy()
    module = importlib.import_module(NAME)
    for _ in range(2):
        assert eval(use.replace("NAME", NAME), {NAME: module}) == 7
    assert read == [NAME, f"{NAME}.part"]
    assert sys.modules[NAME] is module
    assert importlib.reload(module.part) is module.part
    assert read[2:] == [f"{NAME}.part"]


def test_what_is_not_there_is_an_attribute_error(heavy: Any) -> None:
    heavy()
    assert not hasattr(importlib.import_module(NAME), "nothing")


def test_a_package_that_fails_fails_when_it_is_used(heavy: Any) -> None:
    heavy("raise ImportError('broken')\n")
    module = importlib.import_module(NAME)
    with pytest.raises(ImportError, match="broken"):
        _ = module.value
    with pytest.raises(ImportError, match="broken"):
        importlib.import_module(NAME)


def test_what_is_there_or_is_not_installed_stays() -> None:
    defer_import("json")
    assert sys.modules["json"] is json
    defer_import("ft_test_missing")
    assert "ft_test_missing" not in sys.modules


@pytest.mark.slow
def test_a_run_reads_neither_bitsandbytes_nor_datasets(tiny_model_dir: Path, tmp_path: Path) -> None:
    """They cost a quarter of a run's start."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"instruction": "hi", "output": "hello"}\n')
    file = tmp_path / "run.yaml"
    file.write_text(f"model_name_or_path: {tiny_model_dir}\ndataset: {data}\ntemplate: chatml\ndo_train: true\n")
    words = ["run", str(file), "max_steps=1", f"output_dir={tmp_path / 'out'}"]
    code = (
        f"import sys\nfrom ftcore.cli import main\ntry: main({words!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print([name for name in ('bitsandbytes.nn', 'datasets.config', 'torch._inductor.compile_fx')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
