"""Where things lie that outlive a run."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """``$FT_CACHE``, else ``$XDG_CACHE_HOME/ft``, else ``~/.cache/ft``: what can be made again at any time."""
    if root := os.environ.get("FT_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ft"


def is_there(path: Path) -> bool:
    """Whether something has this name, be it a link that leads nowhere; false for what cannot be a name.

    A whole image as text in the place of its path is such: asking for its file raises.
    """
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True
