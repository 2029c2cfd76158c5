"""The method none: nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ft_plugins.methods.adapters import with_adapter
from ftcore.api.components import Method, OptionGroup
from ftcore.models.adapters import adapter_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftcore.api.plan import Plan
    from ftcore.resources.memory_model import Architecture, Depth


class EvalOnly(Method):
    """A frozen model with the adapters of ``adapter_name_or_path`` merged in order; on quantised weights, one
    unmerged."""

    def apply(self, plan: Plan, model: PreTrainedModel) -> PreTrainedModel:
        """Nothing in it requires gradients."""
        quantized = getattr(model, "is_quantized", False)
        for name in plan.model.adapter_name_or_path:
            model = with_adapter(model, adapter_folder(plan, name))
            model = model if quantized else model.merge_and_unload()
        return model.requires_grad_(False)

    def base_adapters(self, plan: Plan) -> tuple[str, ...]:
        """All of them."""
        return plan.model.adapter_name_or_path

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """There is nothing to save."""

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """There is nothing to read back."""

    def count(self, architecture: Architecture, options: OptionGroup, width: int = 4) -> tuple[float, int]:
        """The model in the run's compute dtype, nothing of it trained."""
        return float(width) * architecture.parameters, 0

    def depth(self, architecture: Architecture, options: OptionGroup) -> Depth:
        """There is no backward pass."""
        from ftcore.resources.memory_model import Depth

        return Depth(layers=0, head=False)
