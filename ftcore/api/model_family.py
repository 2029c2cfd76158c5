"""The kind of component that describes a model architecture, and models that a plugin provides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ftcore.api.component import Component


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that a plugin provides, selected by ``model_name_or_path: name``.

    Args:
        name: its name in a training file.
        summary: one line.
        config: the model's ``config.json``, used to estimate memory before the model is downloaded.
        fetch: ``module:function``, called without arguments; it returns the local folder and downloads on first use.
        hub_id: the same model on the hub, for the records.
    """

    name: str
    summary: str
    config: Mapping[str, Any]
    fetch: str
    hub_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelFamily(Component):
    """A model architecture: which models belong to it, and their defaults.

    Args:
        model_types: values of ``model_type`` in config.json.
        template: name of the chat template; None for the tokenizer's own.
        lora_targets: modules that LoRA's target ``all`` stands for; empty for every linear layer but the head.
        media: what the model reads besides text, ``image`` and ``video``, through its own processor.
        image: the text for an image, with its processor's token; empty if the model's own chat template writes it.
        models: models that the plugin provides by name.
        defaults: option -> value for options that the file does not set; the plan shows their origin as ``family``.
    """

    kind = "model_family"
    option = "model_family"

    model_types: tuple[str, ...] = ()
    template: str | None = None
    lora_targets: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    image: str = ""
    models: tuple[ModelSource, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, config: Mapping[str, Any], name: str) -> int:
        """How well a model fits this family. 0: not at all; the family with the highest value is chosen.

        Args:
            config: its config.json.
            name: ``model_name_or_path`` as written.
        """
        return int(config.get("model_type") in self.model_types)
