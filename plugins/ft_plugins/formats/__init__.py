"""The built-in dataset formats."""

from __future__ import annotations

from collections.abc import Iterable

from ft_plugins.formats.instruction import Instruction
from ft_plugins.formats.messages import Conversation, messages
from ftcore import hookimpl
from ftcore.components import DatasetFormat

__all__ = ["Conversation", "Instruction"]

FORMATS: tuple[DatasetFormat, ...] = (Instruction(), messages)


@hookimpl
def ft_dataset_formats() -> Iterable[DatasetFormat]:
    """The formats above."""
    return FORMATS
