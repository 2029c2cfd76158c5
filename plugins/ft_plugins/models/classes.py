"""Which of transformers' classes a model is loaded as: the one that reads images wherever its files hold that one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def reads_images(config: Mapping[str, Any]) -> bool:
    """Whether transformers has a class that reads images and text for this config.json, and the files are of it.

    Fourteen model types of transformers 5.23 are listed both as causal language model and as image-text model; eight of
    them name two classes, with other names of parameters. The one that reads images is taken for rows of text as well:
    an adapter or checkpoint of one run then fits the next, whatever rows either has. Files whose ``architectures`` name
    the text class alone have no weights for another.
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
        config: its config.json.
        scores: with a head that scores, instead of one that predicts tokens.
    """
    import transformers

    if scores:
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForImageTextToText if reads_images(config) else transformers.AutoModelForCausalLM


def _names(listed: Any) -> set[str]:
    return {listed} if isinstance(listed, str) else set(listed or ())
