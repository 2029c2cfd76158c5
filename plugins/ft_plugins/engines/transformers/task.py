"""One prompt, ready to be answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ft_plugins.engines.transformers.generation_settings import Settings


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt, ready.

    Args:
        index: of the prompt.
        ids: its tokens.
        settings: how it is answered.
        new_tokens: limit of the answer.
        seed: for sampling.
    """

    index: int
    ids: tuple[int, ...]
    settings: Settings
    new_tokens: int
    seed: int | None

    @property
    def batchable(self) -> tuple[Any, ...]:
        """Prompts with the same value may share a batch."""
        seed = self.seed if self.settings.samples else None
        # a repetition penalty would also count the tokens that pad
        length = len(self.ids) if self.settings.options.repetition_penalty != 1 else None
        return (self.settings, self.new_tokens, seed, length)
