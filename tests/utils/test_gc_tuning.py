"""Collections while a run starts: rarer, and as before from its first step on."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from ftcore.utils.gc_tuning import relaxed_gc


def test_they_are_rarer_and_then_as_before() -> None:
    before = gc.get_threshold()
    with relaxed_gc():
        assert gc.isenabled()
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before


def test_an_error_puts_them_back() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), relaxed_gc():
        raise KeyError
    assert gc.get_threshold() == before


@pytest.mark.slow
def test_a_run_starts_with_few_and_trains_as_before(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Of everything there were nine, two are left: one of Python's own, and the one with which Trainer begins."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"instruction": "hi", "output": "hello"}\n')
    file = tmp_path / "run.yaml"
    file.write_text(f"model_name_or_path: {tiny_model_dir}\ndataset: {data}\ntemplate: chatml\ndo_train: true\n")
    words = ["run", str(file), "max_steps=1", f"output_dir={tmp_path / 'out'}"]
    code = (
        "import gc, ftcore.runner.run\n"
        "before, own, seen = gc.get_threshold(), ftcore.runner.run.execute, []\n"
        "def carry_out(*args):\n"
        "    seen.append((gc.get_threshold() == before, gc.isenabled(), gc.get_freeze_count() > 100_000))\n"
        "    own(*args)\n"
        "ftcore.runner.run.execute = carry_out\n"
        f"from ftcore.cli import main\ntry: main({words!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert seen == [(True, True, True)], seen\n"
        "assert gc.get_stats()[2]['collections'] < 6, gc.get_stats()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
