"""Pairs of answers to one prompt: their log-probabilities, and the trainer over a loss of each pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ftcore.api.plan import Run
from ftcore.training.batching.collators import Batch
from ftcore.training.batching.pairs import collate_pairs
from ftcore.training.losses import sequence_reductions
from ftcore.training.reference.logprob_cache import ReferenceMetric, add_reference_logprobs
from ftcore.training.trainer import FtTrainer


@dataclass(frozen=True, slots=True)
class PairScores:
    """What a loss sees of B pairs; everything is float64 ``[B]``.

    Args:
        chosen, rejected: log-probabilities of the answers, with ``tail`` applied.
        ref_chosen, ref_rejected: the reference's; 0 where the objective has none.
        chosen_full, rejected_full: log-probabilities of the answers without ``tail``.
        chosen_length, rejected_length: their tokens.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
    chosen_full: torch.Tensor
    rejected_full: torch.Tensor
    chosen_length: torch.Tensor
    rejected_length: torch.Tensor

    @property
    def chosen_gain(self) -> torch.Tensor:
        """Log-ratio of model and reference."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_gain(self) -> torch.Tensor:
        """Log-ratio of model and reference."""
        return self.rejected - self.ref_rejected


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is made of the scores.

    Args:
        loss: the pairs' losses, ``[B]``.
        rewards: what the pairs' answers are worth to the model, two ``[B]``, for the logs.
        reference: whether the scores of a reference are needed.
        tail: factor on the log-probabilities of tokens past the length of the pair's shorter answer.
        compares: pairs of a micro-batch are compared with each other, so that it cannot be divided.
        per_token: the loss is one of the chosen answers' tokens, and its mean goes over these instead of pairs.
    """

    loss: Callable[[PairScores], torch.Tensor]
    rewards: Callable[[PairScores], tuple[torch.Tensor, torch.Tensor]]
    reference: bool = True
    tail: float = 1.0
    compares: bool = False
    per_token: bool = False


class PairTrainer(FtTrainer):
    """Trains on the mean of the losses of each global batch's pairs.

    Rows get the reference's scores as ``reference`` float64 ``[2, 2]``: for chosen and rejected the log-probability of
    as many tokens as both answers have, and of those past that.

    Args:
        run: plan, tokenizer and model.
        train: a `PairDataset`; None where the run only evaluates.
        evaluation: the same; None for none.
        objective: the loss.
        reference: loads the reference; None for the model as it is when the trainer is made.
    """

    def __init__(
        self,
        run: Run,
        *,
        train: Any,
        evaluation: Any = None,
        objective: Objective,
        reference: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(run, train=train, evaluation=evaluation, collator=collate_pairs)
        self.objective, self.loss_is_additive = objective, not objective.compares
        if objective.reference:
            measure = ReferenceMetric("pairs", _pair_sums)
            self.train_dataset, self.eval_dataset = add_reference_logprobs(
                self, measure, (train, evaluation), reference
            )

    def weight(self, batch: Batch) -> float:
        if not self.objective.per_token:
            return float(batch["pair_weights"].sum())
        return float((_halves(sequence_reductions.lengths(batch))[0] * batch["pair_weights"]).sum())

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        logps = self.scorer.logps(batch)
        scores = self._scores(logps, batch)
        if not len(scores.chosen):
            return logps.sum() * 0  # fillers alone, which must have gradients too where processes sum them up
        self._note(scores)
        return self.objective.loss(scores).sum()

    def _scores(self, logps: torch.Tensor, batch: Batch) -> PairScores:
        """Of the pairs that are no fillers: a loss may compare pairs with each other."""
        kept = batch["pair_weights"] > 0
        own = shared_sums(logps, batch)
        factors = torch.tensor([1.0, self.objective.tail], dtype=torch.float64, device=own.device)
        reference = batch["reference"] if self.objective.reference else torch.zeros_like(own)
        each = (own @ factors, reference @ factors, own.sum(1), sequence_reductions.lengths(batch))
        return PairScores(*(half[kept] for values in each for half in _halves(values)))

    def _note(self, scores: PairScores) -> None:
        with torch.no_grad():
            chosen, rejected = self.objective.rewards(scores)
        self.note("rewards/chosen", chosen)
        self.note("rewards/rejected", rejected)
        self.note("rewards/margins", chosen - rejected)
        self.note("rewards/accuracies", (chosen > rejected).double())
        self.note("logps/chosen", scores.chosen)
        self.note("logps/rejected", scores.rejected)


def shared_sums(logps: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Log-probability of the labels that both answers of a pair have the number of, and of the others.

    Args:
        logps: ``[T]``.
        batch: 2B sequences.

    Returns:
        float64 ``[2B, 2]``.
    """
    both = np.array(sequence_reductions.counts(batch)).reshape(2, -1).min(axis=0)
    return sequence_reductions.split_sums(logps, batch, [*both.tolist(), *both.tolist()])


def _pair_sums(scorer: Any, batch: Batch) -> torch.Tensor:
    """``[B, 2, 2]``: pair, chosen or rejected, shared or past that."""
    return shared_sums(scorer.logps(batch), batch).reshape(2, -1, 2).transpose(0, 1)


def _halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    chosen, rejected = values.chunk(2)
    return chosen, rejected
