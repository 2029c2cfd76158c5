"""A prepared prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ft_plugins.engines.transformers.generation_settings import Settings


@dataclass(frozen=True, slots=True)
class Task:
    """A prepared prompt.

    Args:
        index: number of the prompt.
        ids: token ids of the prompt.
        settings: generation settings.
        new_tokens: limit of the answer, in tokens.
        seed: seed for sampling.
    """

    index: int
    ids: tuple[int, ...]
    settings: Settings
    new_tokens: int
    seed: int | None

    @property
    def batchable(self) -> tuple[Any, ...]:
        """Tasks with the same value may share a batch."""
        seed = self.seed if self.settings.samples else None
        # a repetition penalty would also apply to padding tokens
        length = len(self.ids) if self.settings.options.repetition_penalty != 1 else None
        return (self.settings, self.new_tokens, seed, length)
