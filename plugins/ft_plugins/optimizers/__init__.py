"""Optimizers."""

from __future__ import annotations

from collections.abc import Iterable

from ft_plugins.optimizers.adamw import AdamW
from ft_plugins.optimizers.adamw_8bit import AdamW8bit
from ft_plugins.optimizers.needs import problems
from ft_plugins.optimizers.sgd import SGD
from ft_plugins.optimizers.transformers_own import further
from ftcore import hookimpl
from ftcore.api.components import Optimizer
from ftcore.api.plan import Plan
from ftcore.errors import Problem


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    own: list[Optimizer] = [
        AdamW(
            name="adamw",
            summary="Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101)",
            aliases=("adamw_torch", "adamw_torch_fused"),
            default=True,
        ),
        AdamW8bit(
            name="adamw_8bit",
            summary="AdamW with 8-bit states (https://arxiv.org/abs/2110.02861), fast on the CPU too",
            aliases=("adamw_bnb_8bit",),
            state_bytes=2.0 + 8.0 / 256,
        ),
        SGD(name="sgd", summary="stochastic gradient descent, with momentum if wanted", state_bytes=0.0),
    ]
    taken = [name for optimizer in own for name in (optimizer.name, *optimizer.aliases)]
    return [*own, *further(taken)]


@hookimpl
def ft_check_plan(plan: Plan) -> Iterable[Problem]:
    return list(problems(plan))
