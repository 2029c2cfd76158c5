"""Gradient checkpointing: activations of layers are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from ftcore.api.model_transform import Change, ModelTransform, Slot, TransformContext
from ftcore.api.plan import Plan
from ftcore.training.model_transforms.patching import record_attributes


def enable_recomputation(model: Any, arguments: Mapping[str, Any] | None = None) -> None:
    """Enables gradient checkpointing, non-reentrant: frozen inputs, as with LoRA, need that.

    Args:
        model: of transformers.
        arguments: further ones of ``torch.utils.checkpoint``.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({**(arguments or {}), "use_reentrant": False})


class Recomputation(ModelTransform):
    """transformers' gradient checkpointing. Not compared: recomputation repeats the same operations."""

    name = "gradient checkpointing"
    summary = "layers are recomputed in the backward pass, which takes less memory and more time"
    slot = Slot.RECOMPUTE

    def planned(self, plan: Plan) -> str:
        """As the plan decided, by options and memory."""
        return "" if plan.gradient_checkpointing else "gradient checkpointing is off"

    def changes(self, context: TransformContext) -> Iterator[Change]:
        """The whole model."""
        yield _Enabling(context)


class _Enabling(Change):
    def __init__(self, context: TransformContext) -> None:
        self.model, self.arguments = context.model, context.plan.training.gradient_checkpointing_kwargs

    def apply(self) -> None:
        self.restore = record_attributes(self.model, partial(enable_recomputation, self.model, self.arguments))

    def undo(self) -> None:
        self.model.disable_input_require_grads()  # hooks of embeddings, which enabling registers
        self.restore()
