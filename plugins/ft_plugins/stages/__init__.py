"""Training stages."""

from __future__ import annotations

from collections.abc import Iterable

from ft_plugins.stages.sft import SupervisedFineTuning
from ftcore import hookimpl
from ftcore.components import Stage


@hookimpl
def ft_stages() -> Iterable[Stage]:
    return [
        SupervisedFineTuning(
            name="sft", summary="supervised fine-tuning: the model learns the answers of conversations", default=True
        ),
    ]
