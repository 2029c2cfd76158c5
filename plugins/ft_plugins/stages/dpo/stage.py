"""Direct preference optimisation: a loss on the log-probabilities of a pair's answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ft_plugins.stages.references import (
    ReferenceOptions,
    reference_beside,
    reference_loader,
    reference_problems,
)
from ftcore.api.components import Stage
from ftcore.errors import Problem

if TYPE_CHECKING:
    from ft_plugins.stages.dpo.objective import PairLoss, PairObjective
    from ftcore.api.plan import Plan, Run

WITHOUT_REFERENCE = ("orpo", "simpo", "sft")
COMPARING = ("kto_pair", "aot", "aot_unpaired")
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired", "simpo")


class PreferenceOptions(ReferenceOptions):
    """The loss of a pair."""

    pref_beta: Annotated[float, Field(gt=0)] = 0.1
    """Beta of the loss: a larger value keeps the model closer to the reference. In orpo, weight of the odds ratio."""
    pref_loss: Literal[
        "sigmoid",
        "hinge",
        "ipo",
        "kto_pair",
        "orpo",
        "simpo",
        "robust",
        "exo_pair",
        "nca_pair",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sft",
        "sigmoid_norm",
    ] = "sigmoid"
    """The loss. orpo, simpo and sft use no reference. kto_pair, aot and aot_unpaired compare pairs within a
    micro-batch, so their values depend on ``per_device_train_batch_size``."""
    pref_ftx: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answer's negative log-likelihood per token, added to the loss."""
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of pairs with swapped labels; used by sigmoid, robust, exo_pair, aot, aot_unpaired and simpo."""
    simpo_gamma: Annotated[float, Field(ge=0)] = 0.5
    """Target margin of simpo between the rewards of both answers."""
    discopop_tau: Annotated[float, Field(gt=0)] = 0.05
    """Temperature of discopop's mixture of losses."""
    ld_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight of log-probabilities beyond the length of the pair's shorter answer (LD-DPO, 2409.06411); unset, 1."""


class DirectPreference(Stage):
    """Raises the likelihood of the preferred answer over the other one, relative to a reference."""

    Options = PreferenceOptions
    samples: ClassVar[tuple[str, ...]] = ("Preference",)
    learns_from_answers: ClassVar[bool] = False
    sequences_per_row: ClassVar[float] = 2.0
    label_smoothing_hint: ClassVar[str] = "write dpo_label_smoothing, which smooths the preference labels"

    def auxiliary_models(self, plan: Plan) -> Mapping[str, Plan]:
        """The reference that ``ref_model`` or ``ref_model_adapters`` names."""
        return reference_beside(plan)

    def loss_is_additive(self, plan: Plan) -> bool:
        """Not where the loss compares pairs with each other."""
        options = plan.stage.options
        assert isinstance(options, PreferenceOptions)
        return options.pref_loss not in COMPARING

    def datasets(self, run: Run) -> Any:
        """Prompts with two answers each."""
        from ftcore.data.pipeline.loading import pair_datasets

        return pair_datasets(run.plan, run.tokenizer)

    def objective(self, run: Run) -> PairObjective:
        """The loss of the options."""
        from ft_plugins.stages.dpo.objective import PairObjective

        options = run.plan.stage.options
        assert isinstance(options, PreferenceOptions)
        return PairObjective(pair_loss(options), reference_loader(run))


def pair_loss(options: PreferenceOptions) -> PairLoss:
    """The loss of the options."""
    from ft_plugins.stages.dpo.losses import LOSSES, Knobs, rewards
    from ft_plugins.stages.dpo.objective import PairLoss, PairScores

    name, loss = options.pref_loss, LOSSES[options.pref_loss]
    knobs = Knobs(options.pref_beta, options.dpo_label_smoothing, options.simpo_gamma, options.discopop_tau)

    def losses(scores: PairScores) -> Any:
        own = loss(scores, knobs)
        if not options.pref_ftx:
            return own
        return own - options.pref_ftx * scores.chosen_full / scores.chosen_length.clamp(min=1)

    return PairLoss(
        loss=losses,
        rewards=lambda scores: rewards(name, scores, options.pref_beta),
        reference=name not in WITHOUT_REFERENCE,
        tail=1.0 if options.ld_alpha is None else options.ld_alpha,
        per_token=name == "sft",
    )


def problems(plan: Plan) -> Iterable[Problem]:
    """Options that the chosen loss does not use, or needs."""
    options = plan.stage.options
    assert isinstance(options, PreferenceOptions)
    name = options.pref_loss
    useless = {
        "dpo_label_smoothing": options.dpo_label_smoothing > 0 and name not in SMOOTHED,
        "simpo_gamma": options.simpo_gamma != PreferenceOptions().simpo_gamma and name != "simpo",
        "discopop_tau": options.discopop_tau != PreferenceOptions().discopop_tau and name != "discopop",
        "ld_alpha": options.ld_alpha is not None and name == "sft",
        "pref_ftx": options.pref_ftx > 0 and name in ("orpo", "sft"),
        "ref_model": options.ref_model is not None and name in WITHOUT_REFERENCE,
        "ref_model_adapters": bool(options.ref_model_adapters) and name in WITHOUT_REFERENCE,
    }
    for option, wrong in useless.items():
        if wrong:
            hint = "remove it, or choose another pref_loss"
            yield Problem(f"pref_loss {name} does not use {option}", plan.where(option), hint)
    if name == "exo_pair" and not options.dpo_label_smoothing:
        hint = "write dpo_label_smoothing: 0.001, which its authors recommend"
        yield Problem("pref_loss exo_pair needs dpo_label_smoothing above 0", plan.where("pref_loss"), hint)
    yield from reference_problems(plan)
