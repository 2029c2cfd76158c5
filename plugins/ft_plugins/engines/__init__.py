"""The built-in inference engines."""

from __future__ import annotations

from collections.abc import Iterable

from ft_plugins.engines.transformers.engine import HuggingFace
from ftcore import hookimpl
from ftcore.api.components import InferenceEngine


@hookimpl
def ft_inference_engines() -> Iterable[InferenceEngine]:
    """The engine of this package."""
    return [
        HuggingFace(
            name="huggingface",
            summary="transformers' own generate, in this process",
            aliases=("transformers", "hf"),
            default=True,
        )
    ]
