"""Names of served models; imports only light modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from ftcore.inference.target import Target


def name_of(target: Target) -> str:
    """The name of a target: ``serve_name``, else the last part of its adapter's or model's path."""
    model = target.plan.model
    named = (str(model.model_name_or_path), *model.adapter_name_or_path)[-1]
    return target.plan.serving.serve_name or Path(named).name or named


def distinct(names: Sequence[str]) -> None:
    """Checks that names are unique.

    Raises:
        UsageError: with the repeated name.
    """
    for name in names:
        if names.count(name) > 1:
            hint = "write serve_name, or another name for the adapter"
            raise UsageError(Problem(f"two models would have the name {name!r}", "serve_adapters", hint))
