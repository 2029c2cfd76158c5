"""``python lowest_versions.py``: the lower bounds of pyproject.toml as constraints of pip, for ``make test-oldest``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
AS_EVERYWHERE = ("torch",)
"""Packages that `make test-oldest` has in the version of constraints.txt: older builds for the CPU are not on PyPI."""


def lowest() -> Iterator[str]:
    """``name==version`` for each dependency with a lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for requirement in dict.fromkeys([*project["dependencies"], *project["optional-dependencies"]["dev"]]):
        name, version = re.match(r"([\w.-]+)>=([\w.]+)", requirement).groups()
        if name not in AS_EVERYWHERE:
            yield f"{name}=={version}"
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line.partition("==")[0] in AS_EVERYWHERE:
            yield line


if __name__ == "__main__":
    print("\n".join(lowest()))
