"""Backends and compilers for ``torch_compile``, without importing torch."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import entry_points

INDUCTOR = "inductor"
_TORCHS = (INDUCTOR, "cudagraphs", "openxla", "tvm", "aot_eager", "eager")
"""The last two do not compile; they help to find the failing part of a compiler."""
GROUP = "torch_dynamo_backends"
"""The entry-point group for backends of other packages."""


def backends() -> list[str]:
    """Names for ``torch_compile_backend``: torch's own, and those of installed packages."""
    return sorted({*_TORCHS, *(found.name for found in entry_points(group=GROUP))})


def cpp_compiler() -> str | None:
    """The C++ compiler that inductor would use; None if there is none."""
    return shutil.which(os.environ.get("CXX") or "g++")
