"""Kahneman-Tversky optimisation on answers marked good or bad (arXiv 2402.01306)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ft_plugins.stages.references import (
    ReferenceOptions,
    reference_beside,
    reference_loader,
    reference_problems,
)
from ftcore.api.components import Stage

if TYPE_CHECKING:
    from ft_plugins.stages.kto.objective import FeedbackObjective, FeedbackScores
    from ftcore.api.plan import Plan, Run
    from ftcore.errors import Problem


class FeedbackOptions(ReferenceOptions):
    """The loss of an answer."""

    pref_beta: Annotated[float, Field(gt=0)] = 0.1
    """Beta of the loss: a larger value keeps the model closer to the reference."""
    pref_ftx: Annotated[float, Field(ge=0)] = 0.0
    """Weight of good answers' negative log-likelihood per token, added to the loss."""
    kto_chosen_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of good answers' losses."""
    kto_rejected_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of bad answers' losses. Choose both weights so that weight times number of rows is about equal."""


class KahnemanTversky(Stage):
    """Raises the likelihood of good answers and lowers that of bad ones, relative to a reference."""

    Options = FeedbackOptions
    samples: ClassVar[tuple[str, ...]] = ("Feedback",)
    learns_from_answers: ClassVar[bool] = False

    def auxiliary_models(self, plan: Plan) -> Mapping[str, Plan]:
        """The reference that ``ref_model`` or ``ref_model_adapters`` names."""
        return reference_beside(plan)

    def datasets(self, run: Run) -> Any:
        """Prompts, each with one answer marked good or bad."""
        from ftcore.data.pipeline.loading import feedback_datasets

        return feedback_datasets(run.plan, run.tokenizer)

    def objective(self, run: Run) -> FeedbackObjective:
        """The paper's loss."""
        from ft_plugins.stages.kto.objective import FeedbackObjective

        options = run.plan.stage.options
        assert isinstance(options, FeedbackOptions)
        return FeedbackObjective(
            lambda scores: losses(scores, options), options.pref_beta, run.plan.data.cutoff_len, reference_loader(run)
        )


def losses(scores: FeedbackScores, options: FeedbackOptions) -> Any:
    """Equations 6 and 7 of the paper without their constant, as in TRL: weights times ``1 - v / weight``."""
    import torch

    over = options.pref_beta * (scores.gain - scores.divergence)
    good = options.kto_chosen_weight * (1 - torch.sigmoid(over))
    good = good - options.pref_ftx * scores.logps / scores.length.clamp(min=1)
    return torch.where(scores.good, good, options.kto_rejected_weight * (1 - torch.sigmoid(-over)))


def problems(plan: Plan) -> Iterable[Problem]:
    """A reference that does not exist."""
    return reference_problems(plan)
