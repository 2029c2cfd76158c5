"""The built-in inference engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ftcore import hookimpl
from ftcore.components import Generator, InferenceEngine
from ftcore.plan import Plan


@dataclass(frozen=True, kw_only=True)
class HuggingFace(InferenceEngine):
    """Generates with transformers."""

    def load(self, plan: Plan) -> Generator:
        """Model and adapters in this process."""
        from ft_plugins.engines.huggingface import load

        return load(plan)


@hookimpl
def ft_inference_engines() -> Iterable[InferenceEngine]:
    """One engine."""
    return [
        HuggingFace(
            name="huggingface", summary="transformers, in this process", aliases=("transformers", "hf"), default=True
        )
    ]
