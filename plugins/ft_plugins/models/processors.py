"""Processors of models that see, on Pillow alone: transformers' own loading of most of them needs torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ft_plugins.models.loading import hub_kwargs
from ftcore.checks import place
from ftcore.errors import Problem, UsageError
from ftcore.model_files import source_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    from ftcore.plan import Plan


def load_processor(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin | None:
    """The model's processor with its image processor, Pillow's, which gives the same pixels on every machine.

    Returns:
        None where the model's family reads no images, or the model itself has no part that does.

    Raises:
        UsageError: the model's image processor is missing or unknown.
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
        reason = f"transformers knows no processor of {error.args[0]}, so rows with images are not read"
        raise UsageError(Problem(reason, place(plan, "model_name_or_path"))) from error
    except (OSError, ValueError, ImportError) as error:
        name = plan.model.model_name_or_path
        reason = f"the image processor of {name} cannot be loaded: {' '.join(str(error).split())[:300]}"
        hint = "models that see have a preprocessor_config.json beside their weights"
        raise UsageError(Problem(reason, place(plan, "model_name_or_path"), hint)) from error


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
