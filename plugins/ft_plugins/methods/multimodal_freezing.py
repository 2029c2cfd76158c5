"""Which parts of a model that sees are trained: its vision tower and what projects from there stay as they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ft_plugins.models.classes import reads_images

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftcore.api.plan import Plan

PROJECTOR = re.compile(r"projector|merger|connector|aligner")
"""In the names of what brings images' features to the language model's width."""


class MultimodalFreezing:
    """The parts of a model, by the names of their parameters and modules.

    Args:
        plan: its ``media`` options say what is frozen.
        model: of text alone, or with a vision tower.

    Attributes:
        beside: paths of what stands beside the language model, with a dot at the end; empty for a model of text alone.
    """

    def __init__(self, plan: Plan, model: PreTrainedModel) -> None:
        self._options = plan.media
        self.beside = _beside(model)

    def __bool__(self) -> bool:
        return bool(self.beside)

    def sees(self, name: str) -> bool:
        """Whether this is a part of what reads images."""
        return f"{name}.".startswith(self.beside)

    def frozen(self, name: str) -> bool:
        """Whether this stays as it is."""
        if not self.beside:
            return False
        if not self.sees(name):
            return self._options.freeze_language_model
        projects = PROJECTOR.search(name)
        return self._options.freeze_multi_modal_projector if projects else self._options.freeze_vision_tower

    def freeze(self, model: PreTrainedModel) -> None:
        """Takes gradients from what is frozen."""
        for name, tensor in model.named_parameters():
            if self.frozen(name):
                tensor.requires_grad_(False)


def _beside(model: PreTrainedModel) -> tuple[str, ...]:
    if not reads_images({"model_type": model.config.model_type}):
        return ()
    decoder, base = model.get_decoder(), model.base_model
    inside = {id(module) for module in decoder.modules()}
    return tuple(
        f"{model.base_model_prefix}.{name}."
        for name, child in base.named_children()
        if id(child) not in inside and not any(module is decoder for module in child.modules())
    )
