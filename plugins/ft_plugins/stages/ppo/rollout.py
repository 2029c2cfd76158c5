"""Sampling of responses from the policy, and the batches of prompts of each rollout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ftcore.training.batching.collators import Batch, collate
from ftcore.training.batching.samplers import EpochBatches

COLUMNS = ("old_logps", "old_values", "advantages", "returns")
"""Columns of a rollout's row, one value per token of the response, float64 ``[R]``."""


def collate_responses(rows: Sequence[Mapping[str, Any]]) -> Batch:
    """Rows of a rollout as one batch: what `collate` returns, and `COLUMNS` ``[T]`` at its ``positions``."""
    return {**collate(rows), **{name: torch.cat([row[name] for row in rows]) for name in COLUMNS if name in rows[0]}}


class RolloutBatches(EpochBatches):
    """Sets the length of the training loop: the same number of micro-batches for each rollout of an epoch.

    A last rollout with too few rows is filled up from the start of the epoch.

    Args:
        rows: prompts.
        size: prompts per rollout.
        seed: of the order; None keeps the dataset's.
        repeats: micro-batches per rollout.
    """

    def __init__(self, rows: int, size: int, seed: int | None, repeats: int) -> None:
        super().__init__(rows, size, seed)
        self.repeats = repeats

    @property
    def rollouts(self) -> int:
        """Per epoch."""
        return -(-self.rows // self.size)

    def prompts(self, number: int) -> list[int]:
        """Rows of a rollout, counted over all epochs."""
        epoch, place = divmod(number, self.rollouts)
        self.set_epoch(epoch)
        order = self.order()
        return [order[(place * self.size + row) % self.rows] for row in range(self.size)]

    def __len__(self) -> int:
        return self.rollouts * self.repeats

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(len(self)):
            yield [0]


@dataclass(frozen=True)
class Sampler:
    """Samples responses at temperature 1 over the whole vocabulary, so log-probabilities are the policy's own.

    Args:
        model: a transformers model, with or without adapters.
        stop_ids: tokens that end a response; they are part of it.
        pad: padding token.
        new_tokens: most tokens of a response.
    """

    model: Any
    stop_ids: tuple[int, ...]
    pad: int
    new_tokens: int

    def __call__(self, prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
        """A response to each prompt, at least one token; the global random state stays as it was."""
        from transformers import GenerationConfig

        longest = max(map(len, prompts))
        device = self.model.device
        rows = torch.tensor([[self.pad] * (longest - len(ids)) + list(ids) for ids in prompts], device=device)
        real = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        config = GenerationConfig(
            max_new_tokens=self.new_tokens,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            eos_token_id=sorted(self.stop_ids) or None,
            pad_token_id=self.pad,
        )
        # transformers fills unset fields from the model's own generation_config
        own, self.model.generation_config = self.model.generation_config, GenerationConfig()
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                out = self.model.generate(input_ids=rows, attention_mask=real, generation_config=config)
        finally:
            self.model.generation_config = own
        return [self._cut(row) for row in out[:, longest:].tolist()]

    def _cut(self, ids: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids) - 1)
        return ids[: end + 1]


def answered(prompt: Sequence[int], response: Sequence[int], index: int) -> dict[str, Any]:
    """Prompt and response as a row for `collate`; labels are the response's tokens."""
    weights = torch.cat([torch.zeros(len(prompt)), torch.ones(len(response))])
    return {"input_ids": torch.tensor([*prompt, *response]), "weights": weights, "index": index}
