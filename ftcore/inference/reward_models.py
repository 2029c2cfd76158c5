"""Finds the stage that trains reward models."""

from __future__ import annotations

from collections.abc import Sequence

from ftcore.api.components import Stage
from ftcore.api.registry import Plugins
from ftcore.errors import Problem, UsageError


def scoring_stage(plugins: Plugins) -> str:
    """Full name of the stage that trains reward models.

    Raises:
        UsageError: there is none, or several.
    """
    found = [offer.full_name for offer in plugins.of(Stage) if offer.component.head == "sequence_classification"]
    if len(found) != 1:
        reason = f"stages that train reward models: {', '.join(found) or 'none'}"
        raise UsageError(Problem(reason, hint="write stage=NAME"))
    return found[0]


def to_score(file: str | None, overrides: Sequence[str], plugins: Plugins) -> Sequence[str]:
    """The overrides, with the stage of reward models if neither they nor a file can set the stage."""
    if file is not None or any(word.startswith("stage=") for word in overrides):
        return overrides
    return [*overrides, f"stage={scoring_stage(plugins)}"]
