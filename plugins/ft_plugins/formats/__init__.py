"""The built-in dataset formats."""

from __future__ import annotations

from collections.abc import Iterable

from ft_plugins.formats.completion import Completion
from ft_plugins.formats.instruction import Instruction
from ft_plugins.formats.messages import messages
from ft_plugins.formats.raw_text import RawText
from ft_plugins.formats.sharegpt import sharegpt
from ftcore import hookimpl
from ftcore.api.components import DatasetFormat

FORMATS: tuple[DatasetFormat, ...] = (Instruction(), messages, sharegpt, Completion(), RawText())


@hookimpl
def ft_dataset_formats() -> Iterable[DatasetFormat]:
    """The formats above."""
    return FORMATS
