"""What a stage's run costs and reads beside the trained model and its batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


class StageCosts:
    """Part of `ftcore.api.components.Stage`: what the memory estimate and a resume ask."""

    copies: ClassVar[float]

    def longest(self, plan: Plan) -> int:
        """Tokens of the longest row that is trained on."""
        return plan.data.cutoff_len

    def sequences(self, plan: Plan) -> float:
        """Full sequences that one row costs in forward and backward passes; `copies`, unless options say otherwise."""
        return self.copies

    def divides(self, plan: Plan) -> bool:
        """Whether a micro-batch may be computed in several passes (`ftcore.training.trainer.FtTrainer.divisible`)."""
        return True

    def memory(self, plan: Plan) -> Mapping[str, int]:
        """What is kept beside the trained model and its batch: name -> bytes."""
        return {}

    def beside(self, plan: Plan) -> Mapping[str, Plan]:
        """Models that the run reads beside the trained one: option -> the plan with that one in the model's place.

        A run only goes on from a checkpoint while their files are what they were.

        Raises:
            UsageError: no such model.
        """
        return {}
