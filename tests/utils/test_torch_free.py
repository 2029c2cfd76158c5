"""Helpers load without torch and what costs seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ftcore.utils

HEAVY = ("torch", "transformers", "numpy", "peft", "safetensors")


def test_every_helper_is_free_of_torch() -> None:
    folder = Path(ftcore.utils.__file__).parent
    names = sorted(f"ftcore.utils.{file.stem}" for file in folder.glob("*.py") if file.stem != "__init__")
    assert {"ftcore.utils.files", "ftcore.utils.suggestions", "ftcore.utils.units"} <= set(names)
    code = f"import sys, {', '.join(names)}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
