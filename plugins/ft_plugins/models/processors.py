"""Loads processors of vision models with Pillow only; transformers requires torchvision for most of them."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_plugins.models.classes import reads_images
from ft_plugins.models.loading import hub_kwargs
from ftcore.models.files import source_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    from ftcore.api.plan import Plan

log = logging.getLogger(__name__)

NAMING = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)
"""Files that may name the processor's class, in the order of ``AutoProcessor``."""


def load_processor(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin | None:
    """The processor of the model with the Pillow image processor, whose pixels are the same on every machine.

    Returns:
        None if the model reads no images, or with a warning if its processor cannot be loaded: text rows do not need
        it.
    """
    config = plan.config or {}
    if not reads_images(config):
        return None
    from transformers import AutoImageProcessor

    source, kwargs = source_of(plan), hub_kwargs(plan)
    try:
        images = AutoImageProcessor.from_pretrained(source, backend="pil", **kwargs)
        kind = _class(source, kwargs, config)
        settings, _ = kind.get_processor_dict(source, **kwargs)
        parts = {"image_processor": images, "tokenizer": tokenizer}
        with _unchecked():
            made = kind.from_args_and_dict([parts.get(name) for name in kind.get_attributes()], settings)
        _check(made)
        return made
    except (KeyError, OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        why = " ".join(str(error).split())[:300]
    name = plan.model.model_name_or_path
    log.warning("the image processor of %s cannot be loaded, so rows with images are refused: %s", name, why)
    return None


def _check(processor: Any) -> None:
    """Raises ValueError where the processor does not say what it writes in place of an image."""
    from transformers import ProcessorMixin

    silent = type(processor).replace_image_token is ProcessorMixin.replace_image_token
    if silent or not isinstance(getattr(processor, "image_token", None), str):
        raise ValueError(f"{type(processor).__name__} does not define the placeholder tokens of an image")


def _class(source: str, kwargs: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """The class that the files name, else that of the model's type.

    Raises:
        ValueError: transformers has no such class.
    """
    from transformers import ProcessorMixin
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

    named = _named(source, kwargs) or config.get("processor_class")
    name = named or PROCESSOR_MAPPING_NAMES.get(config["model_type"])
    if (found := processor_class_from_name(name) if name else None) is None:
        unknown = f"its files name {named}" if named else f"its model type is {config['model_type']}"
        raise ValueError(f"{unknown}, for which transformers has no processor")
    hidden = name == "PixtralProcessor" and not issubclass(found, ProcessorMixin)
    return _pixtral() if hidden else found


def _pixtral() -> Any:
    """PixtralProcessor without torchvision.

    transformers 5.23 hides the class, because its module imports a function from the torchvision image processor. The
    Pillow image processor has the same function.
    """
    folder = "transformers.models.pixtral"
    hidden = f"{folder}.image_processing_pixtral"
    sys.modules[hidden] = importlib.import_module(f"{folder}.image_processing_pil_pixtral")
    try:
        return importlib.import_module(f"{folder}.processing_pixtral").PixtralProcessor
    finally:
        del sys.modules[hidden]


def _named(source: str, kwargs: Mapping[str, Any]) -> str | None:
    """``processor_class`` of the first file that has it."""
    from transformers.utils import cached_file

    wanted = {name: value for name, value in kwargs.items() if name != "trust_remote_code"}
    for file in NAMING:
        try:
            path = cached_file(source, file, **wanted)
        except OSError:  # there is none
            continue
        settings = json.loads(Path(str(path)).read_text(encoding="utf-8"))
        if name := settings.get("processor_class"):
            return str(name)
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
