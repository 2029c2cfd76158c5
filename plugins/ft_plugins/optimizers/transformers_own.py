"""All other optimizers of transformers by name, created as its Trainer does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ft_plugins.optimizers.adamw import AdamWOptions
from ft_plugins.optimizers.arguments import Arguments
from ft_plugins.optimizers.needs import Package
from ftcore.api.components import Optimizer, OptionGroup
from ftcore.config.hf_training_arguments import training_fields

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ftcore.api.plan import Plan


class BetasOptions(OptionGroup):
    """Decay rates."""

    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the momentum against the gradient in the update."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of the momentum."""


class ArgumentsOptions(OptionGroup):
    """Further arguments of the optimizer."""

    optim_args: Arguments = None
    """Arguments of the optimizer's constructor as ``name=value``, comma separated."""


class AdamArgumentsOptions(AdamWOptions, ArgumentsOptions):
    """Both."""


class TargetsOptions(ArgumentsOptions):
    """Where low-rank projections go."""

    optim_target_modules: str | tuple[str, ...] = "all-linear"
    """Modules whose gradients are projected: ``all-linear``, a regular expression, or names."""


class AdamTargetsOptions(AdamWOptions, TargetsOptions):
    """All of them."""


@dataclass(frozen=True, kw_only=True)
class TransformersOptimizer(Optimizer):
    """An optimizer of transformers by its name in ``optim``.

    Args:
        packages: required packages.
        cuda_only: whether it needs a GPU.
        kept: whether its state holds only numbers and plain tensors, which a checkpoint saves without pickle.
    """

    packages: tuple[Package, ...] = ()
    cuda_only: bool = False
    kept: bool = True

    def create(self, plan: Plan, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """For those that need no model."""
        return self.create_for(plan, None, groups)

    def create_for(
        self, plan: Plan, model: PreTrainedModel | None, groups: Sequence[dict[str, Any]]
    ) -> torch.optim.Optimizer:
        """As `transformers.Trainer.create_optimizer`. Some optimizers take their own groups, or the model."""
        from transformers import Trainer

        from ftcore.training.training_arguments import training_arguments

        with _same_devices():
            arguments = training_arguments(plan)
        made, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        over: Any = list(groups)
        for name in ("params", "model", "optimizer_dict"):
            over = kwargs.pop(name, over)
        return made(over, **kwargs)


@contextmanager
def _same_devices() -> Iterator[None]:
    """Restores accelerate's device state: creating TrainingArguments resets it, also for an existing trainer."""
    from accelerate.state import AcceleratorState, PartialState

    states = [(state._shared_state, dict(state._shared_state)) for state in (AcceleratorState, PartialState)]
    yield
    for shared, kept in states:
        shared.clear()
        shared.update(kept)


@dataclass(frozen=True, kw_only=True)
class Betas(TransformersOptimizer):
    """With betas."""

    Options = BetasOptions


@dataclass(frozen=True, kw_only=True)
class Adam(TransformersOptimizer):
    """With Adam's options."""

    Options = AdamWOptions


@dataclass(frozen=True, kw_only=True)
class WithArguments(TransformersOptimizer):
    """With ``optim_args``."""

    Options = ArgumentsOptions


@dataclass(frozen=True, kw_only=True)
class AdamWithArguments(TransformersOptimizer):
    """With both."""

    Options = AdamArgumentsOptions


@dataclass(frozen=True, kw_only=True)
class WithTargets(TransformersOptimizer):
    """With ``optim_args`` and ``optim_target_modules``."""

    Options = TargetsOptions


@dataclass(frozen=True, kw_only=True)
class AdamWithTargets(TransformersOptimizer):
    """With all of them."""

    Options = AdamTargetsOptions


@dataclass(frozen=True, slots=True)
class _Family:
    """Names of one kind of optimizer. ``state`` is bytes of optimizer state per trained parameter."""

    names: str
    kind: type[TransformersOptimizer]
    state: float
    summary: str
    packages: tuple[Package, ...] = ()


_BNB = (Package("bitsandbytes"),)
_FREE, _AO = (Package("schedulefree"),), (Package("torchao"),)
_GALORE = (Package("galore_torch", "galore-torch"),)
_APOLLO = (Package("apollo_torch", "apollo-torch"),)
_LOMO = (Package("lomo_optim", "lomo-optim"),)

FAMILIES = (
    _Family("adafactor", TransformersOptimizer, 0.1, "Adafactor: factored second moments"),
    _Family("adamw_torch_xla", Adam, 8, "AdamW of torch_xla", (Package("torch_xla"),)),
    _Family("adamw_torch_npu_fused", Adam, 8, "fused AdamW of Ascend NPUs", (Package("torch_npu"),)),
    _Family("adamw_anyprecision", AdamWithArguments, 8, "AdamW with a dtype for each state",
            (Package("torchdistx", "git+https://github.com/pytorch/torchdistx"),)),
    _Family("adamw_torch_4bit", AdamWithArguments, 1.1, "AdamW with 4-bit states of torchao", _AO),
    _Family("adamw_torch_8bit", AdamWithArguments, 2.1, "AdamW with 8-bit states of torchao", _AO),
    _Family("ademamix", AdamWithArguments, 12, "AdEMAMix: two momenta", _BNB),
    _Family("ademamix_8bit", AdamWithArguments, 3.1, "AdEMAMix with 8-bit states", _BNB),
    _Family("paged_ademamix_32bit", AdamWithArguments, 12, "AdEMAMix with paged states", _BNB),
    _Family("paged_ademamix_8bit", AdamWithArguments, 3.1, "AdEMAMix with paged 8-bit states", _BNB),
    _Family("lion_32bit", Betas, 4, "Lion: the sign of a momentum", _BNB),
    _Family("lion_8bit", Betas, 1.1, "Lion with 8-bit states", _BNB),
    _Family("paged_lion_32bit", Betas, 4, "Lion with paged states", _BNB),
    _Family("paged_lion_8bit", Betas, 1.1, "Lion with paged 8-bit states", _BNB),
    _Family("paged_adamw_32bit", Adam, 8, "AdamW with paged states", _BNB),
    _Family("paged_adamw_8bit", Adam, 2.1, "AdamW with paged 8-bit states", _BNB),
    _Family("adagrad", WithArguments, 4, "Adagrad"),
    _Family("rmsprop", WithArguments, 4, "RMSprop"),
    _Family("rmsprop_bnb rmsprop_bnb_32bit", WithArguments, 4, "RMSprop of bitsandbytes", _BNB),
    _Family("rmsprop_bnb_8bit", WithArguments, 1.1, "RMSprop with 8-bit states", _BNB),
    _Family("galore_adamw galore_adamw_layerwise", WithTargets, 8, "GaLore: AdamW on projected gradients", _GALORE),
    _Family("galore_adamw_8bit galore_adamw_8bit_layerwise", WithTargets, 2.1, "GaLore with 8-bit states",
            (*_GALORE, *_BNB)),
    _Family("galore_adafactor galore_adafactor_layerwise", WithTargets, 0.1, "GaLore with Adafactor", _GALORE),
    _Family("apollo_adamw apollo_adamw_layerwise", AdamWithTargets, 8, "APOLLO: AdamW scaled by channel", _APOLLO),
    _Family("lomo", TransformersOptimizer, 0, "LOMO: steps inside the backward pass", _LOMO),
    _Family("adalomo", TransformersOptimizer, 0.1, "AdaLOMO", _LOMO),
    _Family("grokadamw", WithArguments, 12, "GrokAdamW", (Package("grokadamw"),)),
    _Family("schedule_free_radam schedule_free_adamw", AdamWithArguments, 8, "schedule-free AdamW", _FREE),
    _Family("schedule_free_sgd", WithArguments, 4, "schedule-free SGD", _FREE),
    _Family("stable_adamw", AdamWithArguments, 8, "StableAdamW", (Package("optimi", "torch-optimi"),)),
)  # fmt: skip
"""Known optimizers. A name of transformers that is not listed is registered too, with the state size of AdamW."""


def further(taken: Sequence[str]) -> Iterator[TransformersOptimizer]:
    """A component for each name of transformers' ``optim`` except those in ``taken``."""
    known: Mapping[str, _Family] = {name: family for family in FAMILIES for name in family.names.split()}
    for name in training_fields()["optim"].choices:
        if name in taken:
            continue
        family = known.get(name, _Family(name, AdamWithArguments, 8, "an optimizer of transformers"))
        yield family.kind(
            name=name,
            summary=f"{family.summary} (transformers)",
            state_bytes=family.state,
            packages=family.packages,
            cuda_only=name.startswith(("paged_", "galore_adamw_8bit", "lomo", "adalomo")),
            steps_in_backward=name in ("lomo", "adalomo"),
            kept=not name.startswith(("galore_", "apollo_", "adamw_torch_4bit", "adamw_torch_8bit")),
        )
