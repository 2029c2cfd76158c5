"""What ``torch_compile`` needs of a machine, known without torch."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import entry_points

INDUCTOR = "inductor"
_TORCHS = (INDUCTOR, "cudagraphs", "openxla", "tvm", "aot_eager", "eager")
"""The last two compile nothing: they are for finding out which part of a compiler fails."""
GROUP = "torch_dynamo_backends"
"""The entry points by which packages bring backends."""


def backends() -> list[str]:
    """Names for ``torch_compile_backend``: torch's own, and what is installed."""
    return sorted({*_TORCHS, *(found.name for found in entry_points(group=GROUP))})


def cpp_compiler() -> str | None:
    """The C++ compiler that inductor takes, as it looks for it; None where there is none."""
    return shutil.which(os.environ.get("CXX") or "g++")
