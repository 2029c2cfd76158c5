"""Reward modelling: a score for answers, learnt from pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ftcore.api.components import Stage

if TYPE_CHECKING:
    from ft_plugins.stages.rm.objective import BradleyTerry
    from ftcore.api.plan import Run


class RewardModelling(Stage):
    """Learns to score preferred answers higher; saves a sequence-classification model with one label."""

    samples: ClassVar[tuple[str, ...]] = ("Preference",)
    learns_from_answers: ClassVar[bool] = False
    head: ClassVar[str] = "sequence_classification"
    sequences_per_row: ClassVar[float] = 2.0

    def datasets(self, run: Run) -> Any:
        """Prompts with two answers each."""
        from ftcore.data.pipeline.loading import pair_datasets

        return pair_datasets(run.plan, run.tokenizer)

    def objective(self, run: Run) -> BradleyTerry:
        """The Bradley-Terry loss."""
        from ft_plugins.stages.rm.objective import BradleyTerry

        return BradleyTerry(run.tokenizer.pad_token_id)
