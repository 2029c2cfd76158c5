"""Which architectures are known, and the template that suits each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftcore.components import ModelFamily


@dataclass(frozen=True, kw_only=True)
class NamedFamily(ModelFamily):
    """A family that shares its ``model_type`` with others: a word in the model's name tells.

    Args:
        words: lower-case words, any of which must be in the name.
    """

    words: tuple[str, ...] = ()

    def matches(self, config: Mapping[str, Any], name: str) -> int:
        """2 where type and name fit, so that it wins over a family that only knows the type."""
        fits = super().matches(config, name) and any(word in name.lower() for word in self.words)
        return 2 * int(fits)


FAMILIES: tuple[ModelFamily, ...] = (
    ModelFamily(name="llama", summary="Llama and whatever is built like it", model_types=("llama",)),
    NamedFamily(
        name="llama3",
        summary="Llama 3",
        model_types=("llama",),
        template="llama3",
        words=("llama-3-", "llama3-", "meta-llama-3-"),
    ),
    NamedFamily(name="smollm2", summary="SmolLM2", model_types=("llama",), template="smollm2", words=("smollm2",)),
    ModelFamily(name="qwen2", summary="Qwen 2 and 2.5", model_types=("qwen2", "qwen2_moe"), template="qwen"),
    ModelFamily(name="qwen3", summary="Qwen 3", model_types=("qwen3", "qwen3_moe")),
    ModelFamily(name="chatglm", summary="ChatGLM 3", model_types=("chatglm",), template="chatglm"),
    ModelFamily(name="glm", summary="GLM 4", model_types=("glm", "glm4", "glm4_moe")),
    ModelFamily(name="mistral", summary="Mistral", model_types=("mistral", "ministral")),
    ModelFamily(name="mixtral", summary="Mixtral", model_types=("mixtral",)),
    ModelFamily(name="gemma", summary="Gemma", model_types=("gemma",)),
    ModelFamily(name="gemma2", summary="Gemma 2", model_types=("gemma2",)),
    ModelFamily(name="gemma3", summary="Gemma 3", model_types=("gemma3", "gemma3_text")),
    ModelFamily(name="phi3", summary="Phi 3 and 4", model_types=("phi3",)),
    ModelFamily(name="olmo2", summary="OLMo 2", model_types=("olmo2",)),
    ModelFamily(name="granite", summary="Granite", model_types=("granite",)),
    ModelFamily(name="smollm3", summary="SmolLM3", model_types=("smollm3",)),
)
"""A family without a template leaves it to the tokenizer's own."""
