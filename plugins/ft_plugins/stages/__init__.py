"""Training stages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ft_plugins.stages import pt
from ft_plugins.stages.dpo import stage as dpo
from ft_plugins.stages.kto import stage as kto
from ft_plugins.stages.ppo import stage as ppo
from ft_plugins.stages.rm.stage import RewardModelling
from ft_plugins.stages.sft import stage as sft
from ftcore import hookimpl
from ftcore.api.components import Stage

if TYPE_CHECKING:
    from ftcore.api.plan import Plan
    from ftcore.errors import Problem


@hookimpl
def ft_stages() -> Iterable[Stage]:
    return [
        pt.Pretraining(name="pt", summary="pretraining: next-token loss on raw texts"),
        sft.SupervisedFineTuning(
            name="sft", summary="supervised fine-tuning on the assistant's turns of conversations", default=True
        ),
        RewardModelling(name="rm", summary="reward model: learns to score preferred answers higher"),
        ppo.ProximalPolicy(name="ppo", summary="policy optimisation against a reward model (arXiv 1707.06347)"),
        dpo.DirectPreference(
            name="dpo", summary="preference optimisation on pairs of answers: DPO, IPO, ORPO, SimPO and others"
        ),
        kto.KahnemanTversky(
            name="kto", summary="preference optimisation on answers marked good or bad (arXiv 2402.01306)"
        ),
    ]


@hookimpl
def ft_check_plan(plan: Plan) -> Iterable[Problem]:
    """Options of the stage that exclude each other."""
    checks = {
        dpo.DirectPreference: dpo.problems,
        kto.KahnemanTversky: kto.problems,
        ppo.ProximalPolicy: ppo.problems,
        pt.Pretraining: pt.problems,
        sft.SupervisedFineTuning: sft.problems,
    }
    check = checks.get(type(plan.stage.component))
    return check(plan) if check else ()
