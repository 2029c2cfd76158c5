"""The objective of preference pairs: losses on the log-probabilities of both answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ftcore.training.batching.collators import Batch
from ftcore.training.batching.pairs import collate_pairs
from ftcore.training.losses import sequence_reductions
from ftcore.training.objective import Objective, Rows
from ftcore.training.reference.logprob_cache import ReferenceMetric


@dataclass(frozen=True, slots=True)
class PairScores:
    """Inputs of a loss for B pairs, each float64 ``[B]``.

    Args:
        chosen, rejected: log-probabilities of the answers, with ``tail`` applied.
        ref_chosen, ref_rejected: the same under the reference; 0 where the objective has none.
        chosen_full, rejected_full: log-probabilities of the answers without ``tail``.
        chosen_length, rejected_length: numbers of tokens.
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
class PairLoss:
    """A loss on pairs and its properties.

    Args:
        loss: losses of the pairs, ``[B]``.
        rewards: rewards of both answers, two ``[B]``, for the logs.
        reference: whether log-probabilities of a reference are needed.
        tail: factor on the log-probabilities of tokens beyond the length of the pair's shorter answer.
        per_token: the mean goes over the tokens of the chosen answers instead of over pairs.
    """

    loss: Callable[[PairScores], torch.Tensor]
    rewards: Callable[[PairScores], tuple[torch.Tensor, torch.Tensor]]
    reference: bool = True
    tail: float = 1.0
    per_token: bool = False


class PairObjective(Objective):
    """The mean loss over the pairs of each global batch.

    Rows get the reference scores as ``reference``, float64 ``[2, 2]``. For the chosen and the rejected answer it holds
    two log-probabilities: that of the first n tokens, n being the length of the shorter answer, and that of the rest.

    Args:
        loss: of the pairs.
        load_reference: loads the reference; None for the model as it is before training.
    """

    def __init__(self, loss: PairLoss, load_reference: Callable[[], Any] | None = None) -> None:
        self.loss = loss
        if loss.reference:
            self.reference_metric, self.load_reference = ReferenceMetric("pairs", _pair_sums), load_reference

    def collate(self, rows: Rows) -> Batch:
        return collate_pairs(rows)

    def weight(self, batch: Batch) -> float:
        if not self.loss.per_token:
            return float(batch["pair_weights"].sum())
        return float((_halves(sequence_reductions.lengths(batch))[0] * batch["pair_weights"]).sum())

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        logps = self.scorer.logps(batch)
        scores = self._scores(logps, batch)
        if not len(scores.chosen):
            return logps.sum() * 0  # only fillers: gradients must exist, as processes sum them
        self._note(scores)
        return self.loss.loss(scores).sum()

    def _scores(self, logps: torch.Tensor, batch: Batch) -> PairScores:
        """Scores of all pairs except fillers: a loss may compare pairs with each other."""
        kept = batch["pair_weights"] > 0
        own = shared_sums(logps, batch)
        factors = torch.tensor([1.0, self.loss.tail], dtype=torch.float64, device=own.device)
        reference = batch["reference"] if self.loss.reference else torch.zeros_like(own)
        each = (own @ factors, reference @ factors, own.sum(1), sequence_reductions.lengths(batch))
        return PairScores(*(half[kept] for values in each for half in _halves(values)))

    def _note(self, scores: PairScores) -> None:
        with torch.no_grad():
            chosen, rejected = self.loss.rewards(scores)
        self.log_metric("rewards/chosen", chosen)
        self.log_metric("rewards/rejected", rejected)
        self.log_metric("rewards/margins", chosen - rejected)
        self.log_metric("rewards/accuracies", (chosen > rejected).double())
        self.log_metric("logps/chosen", scores.chosen)
        self.log_metric("logps/rejected", scores.rejected)


def shared_sums(logps: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Log-probability of each answer's first n labels, n being the length of the pair's shorter one, and of the rest.

    Args:
        logps: ``[T]``.
        batch: 2B sequences.

    Returns:
        float64 ``[2B, 2]``.
    """
    both = np.array(sequence_reductions.counts(batch)).reshape(2, -1).min(axis=0)
    return sequence_reductions.split_sums(logps, batch, [*both.tolist(), *both.tolist()])


def _pair_sums(scorer: Any, batch: Batch) -> torch.Tensor:
    """``[B, 2, 2]``: pair; chosen or rejected; first labels or the rest (see `shared_sums`)."""
    return shared_sums(scorer.logps(batch), batch).reshape(2, -1, 2).transpose(0, 1)


def _halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    chosen, rejected = values.chunk(2)
    return chosen, rejected
