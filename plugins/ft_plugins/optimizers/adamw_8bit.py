"""AdamW with both moments in 8 bits, in bitsandbytes' format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ft_plugins.optimizers.adamw import AdamWOptions
from ft_plugins.optimizers.needs import Package
from ftcore.api.components import Optimizer

if TYPE_CHECKING:
    import torch

    from ftcore.api.plan import Plan


class AdamW8bit(Optimizer):
    """bitsandbytes' AdamW on CUDA; on the CPU, the same states with `ft_plugins.optimizers.blockwise`."""

    Options = AdamWOptions
    packages = (Package("bitsandbytes"), Package("numba", cpu_only=True))

    def create(self, plan: Plan, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """8 bits for every parameter of 4096 values or more. transformers keeps embeddings in 32 bits, ft does not."""
        options = plan.optimizer.options
        assert isinstance(options, AdamWOptions)
        kwargs = {"betas": (options.adam_beta1, options.adam_beta2), "eps": options.adam_epsilon, "optim_bits": 8}
        if all(tensor.device.type != "cpu" for group in groups for tensor in group["params"]):
            from bitsandbytes.optim import AdamW

            return AdamW(list(groups), **kwargs)
        from ft_plugins.optimizers.blockwise import BlockwiseAdamW

        return BlockwiseAdamW(list(groups), **kwargs)
