"""The next token of one answer: drawn as ``generate`` draws it, with a random state of its own."""

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
    """Refuses scores of which no token is the likeliest; ``argmax`` would take the first that is no number.

    Args:
        scores: ``[..., vocabulary]``.

    Raises:
        RunError: one is no number or infinite, or all tokens are out of the question.
    """
    if not bool(scores.amax(-1).isfinite().all()):
        raise RunError("the logits for the next token are not finite")


class FiniteScores(LogitsProcessor):
    """The same for ``generate``, which looks only where it draws."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores as they are."""
        check_scores(scores)
        return scores


class Sampler:
    """Chooses tokens of one answer.

    With a seed the draws are those of ``generate`` after ``torch.manual_seed``, whatever else is in the batch.

    Args:
        task: what is answered.
        device: of the scores.
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
            scores: the model's, float32 ``[vocabulary]``.

        Raises:
            RunError: they are not numbers.
        """
        check_scores(scores)
        row = scores[None]
        if self.processors:
            row = self.processors(torch.tensor([ids], device=row.device), row.clone())
        if not self.samples:
            return int(row.argmax(-1))
        return int(torch.multinomial(row.softmax(-1), 1, generator=self.random))
