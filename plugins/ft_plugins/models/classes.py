"""Selects the transformers class of a model; the vision class, if its files are of that class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def reads_images(config: Mapping[str, Any]) -> bool:
    """Whether transformers has an image-text class for this config.json, and the files are of that class.

    Fourteen model types of transformers 5.23 are causal language models and image-text models; eight of them have two
    classes with different parameter names. The image-text class is used for text rows as well, so that an adapter or
    checkpoint of one run fits the next. Files whose ``architectures`` name only the text class have no weights for the
    other.
    """
    from transformers.models.auto import modeling_auto as known

    kind = str(config.get("model_type"))
    whole = _names(known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind))
    text = _names(known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)) - whole
    saved = set(config.get("architectures") or ())
    return bool(whole) and not (saved & text and not saved & whole)


def automatic_class(config: Mapping[str, Any], *, scores: bool = False) -> Any:
    """The auto class that loads the model.

    Args:
        config: config.json of the model.
        scores: whether the model has a reward head instead of a language-model head.
    """
    import transformers

    if scores:
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForImageTextToText if reads_images(config) else transformers.AutoModelForCausalLM


def _names(listed: Any) -> set[str]:
    return {listed} if isinstance(listed, str) else set(listed or ())
