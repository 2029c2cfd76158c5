"""Samples the next token of an answer as ``generate`` does, with a random state per answer."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ftcore.errors import RunError

if TYPE_CHECKING:
    from ft_plugins.engines.transformers.task import Task


def check_scores(scores: torch.Tensor) -> None:
    """Raises an error for non-finite logits; ``argmax`` would return the first NaN.

    Args:
        scores: logits ``[..., vocabulary]``.

    Raises:
        RunError: the largest logit of a row is NaN or infinite.
    """
    if not bool(scores.amax(-1).isfinite().all()):
        raise RunError("the logits for the next token are not finite")


class FiniteScores(LogitsProcessor):
    """Applies `check_scores` in ``generate``, which checks only when sampling."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Checks the scores and returns them unchanged."""
        check_scores(scores)
        return scores


class Sampler:
    """Samples the tokens of one answer.

    With a seed, the draws equal those of ``generate`` after ``torch.manual_seed``, whatever else is in the batch.

    Args:
        task: the task.
        device: device of the scores.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        options, self.samples = task.settings.options, task.settings.samples
        # the order of transformers.generation.utils._get_logits_processor
        self.processors = LogitsProcessorList()
        if options.repetition_penalty != 1:
            self.processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
        if self.samples:
            if options.temperature != 1:
                self.processors.append(TemperatureLogitsWarper(options.temperature))
            if options.top_k:
                self.processors.append(TopKLogitsWarper(options.top_k))
            if options.top_p < 1:
                self.processors.append(TopPLogitsWarper(options.top_p))
        self.random = torch.Generator(device)
        self.random.manual_seed(secrets.randbits(63) if task.seed is None else task.seed)

    def choose(self, ids: list[int], scores: torch.Tensor) -> int:
        """The next token.

        Args:
            ids: prompt and answer so far.
            scores: logits, float32 ``[vocabulary]``.

        Raises:
            RunError: the logits are not finite.
        """
        check_scores(scores)
        row = scores[None]
        if self.processors:
            row = self.processors(torch.tensor([ids], device=row.device), row.clone())
        if not self.samples:
            return int(row.argmax(-1))
        return int(torch.multinomial(row.softmax(-1), 1, generator=self.random))
