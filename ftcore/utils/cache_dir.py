"""The cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """``$FT_CACHE``, else ``$XDG_CACHE_HOME/ft``, else ``~/.cache/ft``. Everything in it can be computed again."""
    if root := os.environ.get("FT_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ft"


def is_there(path: Path) -> bool:
    """Whether a path exists, broken links included; false for impossible paths, for which ``lstat`` raises.

    An example is an image as base64 text in the field for its path.
    """
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True
