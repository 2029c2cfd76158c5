"""The kind of component that knows an architecture, and the models that a plugin brings along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ftcore.api.component import Component


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that a plugin brings along, selected by ``model_name_or_path: name``.

    Args:
        name: how a file names it.
        summary: one line.
        config: the model's ``config.json``, so that memory is estimated before anything is fetched.
        fetch: ``module:function``; called without arguments it returns the local folder, fetching on first use.
        hub_id: the same model on the hub, for the records.
    """

    name: str
    summary: str
    config: Mapping[str, Any]
    fetch: str
    hub_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelFamily(Component):
    """What is known of an architecture: which models belong to it, and the defaults that suit them.

    Args:
        model_types: values of ``model_type`` in config.json.
        template: name of the chat template; None where only the tokenizer knows.
        lora_targets: module names that LoRA's ``all`` means; empty for every linear layer but the head.
        media: what a model reads beside text, ``image`` and ``video``, through its own processor.
        image: what stands in the text for an image, its processor's token in it; empty where the model's own chat
            template says so.
        models: models that the plugin offers by name.
        defaults: option -> value, used where the file is silent; the plan shows their origin as ``family``.
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
        """How well a model fits: 0 not at all; the highest of all families wins.

        Args:
            config: its config.json.
            name: ``model_name_or_path`` as written.
        """
        return int(config.get("model_type") in self.model_types)
