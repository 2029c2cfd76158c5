"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from ft_plugins.optimizers.arguments import Arguments, named
from ftcore.api.components import Optimizer, OptionGroup

if TYPE_CHECKING:
    import torch

    from ftcore.api.plan import Plan


class SGDOptions(OptionGroup):
    """Momentum of SGD."""

    sgd_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum factor; 0 keeps no optimizer state."""
    sgd_nesterov: bool = False
    """Use Nesterov momentum."""
    optim_args: Arguments = None
    """The same in transformers' form: ``momentum=0.9,nesterov=true``; also ``dampening``."""

    @model_validator(mode="after")
    def _once(self) -> SGDOptions:
        given = named(self.optim_args)
        if unknown := given.keys() - {"momentum", "dampening", "nesterov"}:
            raise ValueError(
                f"optim_args of sgd are momentum, dampening and nesterov, not {', '.join(sorted(unknown))}"
            )
        if given and (self.sgd_momentum or self.sgd_nesterov):
            raise ValueError("optim_args excludes sgd_momentum and sgd_nesterov: remove one of them")
        return self


class SGD(Optimizer):
    """torch's SGD. ``weight_decay`` is not decoupled here: it is added to the gradient."""

    Options = SGDOptions

    def configured(self, options: OptionGroup) -> SGD:
        """One float32 of state per parameter with momentum, none without."""
        from dataclasses import replace

        return replace(self, state_bytes=4.0 if _settings(options)["momentum"] else 0.0)

    def create(self, plan: Plan, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Fused where the device has the kernel."""
        import torch

        devices = {tensor.device.type for group in groups for tensor in group["params"]}
        settings = _settings(plan.optimizer.options)
        return torch.optim.SGD(list(groups), **settings, fused=devices <= {"cpu", "cuda"})


def _settings(options: OptionGroup) -> dict[str, Any]:
    """torch's names and values."""
    assert isinstance(options, SGDOptions)
    given = named(options.optim_args)
    return {
        "momentum": float(given.get("momentum", options.sgd_momentum)),
        "dampening": float(given.get("dampening", 0.0)),
        "nesterov": options.sgd_nesterov or given.get("nesterov", "").lower() in ("true", "1", "yes"),
    }
