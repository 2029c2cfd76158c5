"""Freezing of parts of a vision-language model: vision tower, projector, language model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ft_plugins.models.classes import reads_images

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftcore.api.plan import Plan

PROJECTOR = re.compile(r"projector|merger|connector|aligner")
"""In the names of modules that project image features to the language model's hidden size."""


class MultimodalFreezing:
    """Which parts of a model are frozen, by names of parameters and modules.

    Args:
        plan: its ``media`` options decide.
        model: with or without a vision tower.

    Attributes:
        beside: path prefixes of modules outside the language model, each ending in a dot; empty for a text model.
    """

    def __init__(self, plan: Plan, model: PreTrainedModel) -> None:
        self._options = plan.media
        self.beside = _beside(model)

    def __bool__(self) -> bool:
        return bool(self.beside)

    def sees(self, name: str) -> bool:
        """Whether this is a part of vision tower or projector."""
        return f"{name}.".startswith(self.beside)

    def frozen(self, name: str) -> bool:
        """Whether this is frozen."""
        if not self.beside:
            return False
        if not self.sees(name):
            return self._options.freeze_language_model
        projects = PROJECTOR.search(name)
        return self._options.freeze_multi_modal_projector if projects else self._options.freeze_vision_tower

    def freeze(self, model: PreTrainedModel) -> None:
        """Sets ``requires_grad`` of frozen parameters to false."""
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
