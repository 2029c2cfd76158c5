"""Processors of models that see, on Pillow alone: transformers' own loading of most of them needs torchvision."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ft_plugins.models.loading import hub_kwargs
from ftcore.model_files import source_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    from ftcore.plan import Plan

log = logging.getLogger(__name__)


def load_processor(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin | None:
    """The model's processor with its image processor, Pillow's, which gives the same pixels on every machine.

    Returns:
        None where the model's family reads no images, the model itself has no part that does, or its image processor
        cannot be loaded, which is told: rows of text do not need it.
    """
    family, config = plan.family, plan.config or {}
    sees = family is not None and "image" in family.component.media
    if not sees or not any("vision" in name for name in config):
        return None
    from transformers import AutoImageProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

    source, kwargs = source_of(plan), hub_kwargs(plan)
    try:
        images = AutoImageProcessor.from_pretrained(source, backend="pil", **kwargs)
        kind: Any = processor_class_from_name(PROCESSOR_MAPPING_NAMES[config["model_type"]])
        settings, _ = kind.get_processor_dict(source, **kwargs)
        parts = {"image_processor": images, "tokenizer": tokenizer}
        with _unchecked():
            return kind.from_args_and_dict([parts.get(name) for name in kind.get_attributes()], settings)
    except KeyError as error:
        why = f"transformers knows no processor of {error.args[0]}"
    except (OSError, ValueError, ImportError) as error:
        why = " ".join(str(error).split())[:300]
    name = plan.model.model_name_or_path
    log.warning("the image processor of %s cannot be loaded, so rows with images are refused: %s", name, why)
    return None


@contextmanager
def _unchecked() -> Iterator[None]:
    """Lets a processor be made without a video processor, which needs torchvision: transformers 5.23 refuses it."""
    from transformers import ProcessorMixin

    own = ProcessorMixin.check_argument_for_proper_class
    ProcessorMixin.check_argument_for_proper_class = lambda self, name, value: type(value)
    try:
        yield
    finally:
        ProcessorMixin.check_argument_for_proper_class = own
