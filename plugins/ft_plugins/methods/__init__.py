"""Fine-tuning methods: which parameters are trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ft_plugins.methods.eval_only import EvalOnly
from ft_plugins.methods.freeze import Freeze
from ft_plugins.methods.full import Full
from ft_plugins.methods.lora import Lora
from ft_plugins.methods.qlora import Qlora
from ftcore import hookimpl
from ftcore.api.components import Method

if TYPE_CHECKING:
    from ftcore.api.plan import Plan
    from ftcore.errors import Problem


@hookimpl
def ft_methods() -> Iterable[Method]:
    return [
        Full(name="full", summary="every parameter is trained"),
        Freeze(name="freeze", summary="the last or first layers are trained, or named modules of them"),
        Lora(
            name="lora",
            summary="low-rank adapters beside frozen linear layers (https://arxiv.org/abs/2106.09685)",
            default=True,
        ),
        Qlora(
            name="qlora",
            summary="low-rank adapters beside linear layers quantised to 4 or 8 bits (https://arxiv.org/abs/2305.14314)",
        ),
        EvalOnly(name="none", summary="nothing is trained: for evaluation and inference"),
    ]


@hookimpl
def ft_check_plan(plan: Plan) -> Iterable[Problem]:
    from ft_plugins.methods.checking import problems

    return problems(plan)
