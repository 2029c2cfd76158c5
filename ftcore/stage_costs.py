"""What a stage's run costs beside the trained model and its batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftcore.plan import Plan


class StageCosts:
    """Part of `ftcore.components.Stage`: what the memory estimate asks."""

    def longest(self, plan: Plan) -> int:
        """Tokens of the longest row that is trained on."""
        return plan.data.cutoff_len

    def memory(self, plan: Plan) -> Mapping[str, int]:
        """What is kept beside the trained model and its batch: name -> bytes."""
        return {}
