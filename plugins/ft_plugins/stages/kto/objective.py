"""The objective of answers marked good or bad: batches, mismatched answers, and the loss.

An answer's gain over the reference is compared with a divergence: the mean gain of answers paired with other prompts
(arXiv 2402.01306, section 4.1). In training it is estimated over the whole global batch, across micro-batches and
processes, so a micro-batch of one row works. In an evaluation it is estimated over the whole set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ftcore.errors import Problem, UsageError
from ftcore.training.batching.collators import Batch, collate
from ftcore.training.batching.pairs import answered
from ftcore.training.losses import sequence_reductions
from ftcore.training.objective import Objective, Rows
from ftcore.training.reference.logprob_cache import ReferenceMetric
from ftcore.utils.hashing import sha256_of


class MismatchedRows:
    """A dataset whose rows also hold another row's answer, as ``other_ids`` and ``other_weights``.

    The answer is that of the nearest earlier row with another prompt, wrapping around at the start. Data often lists
    several answers to one prompt in a row. For rows in order, mismatched answers come from the same batch, as in TRL
    (trainer/kto_trainer.py, _prepare_dataset).

    Args:
        rows: a `FeedbackDataset`.
        limit: most tokens of a prompt with another answer; longer answers are cut.

    Raises:
        UsageError: all rows have the same prompt.
    """

    def __init__(self, rows: Any, limit: int) -> None:
        self.rows, self.limit = rows, limit
        self.others = _others(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, other = self.rows[index], self.rows[int(self.others[index])]
        room = max(self.limit - len(row["prompt_ids"]), 1)
        return {**row, "other_ids": other["answer_ids"][:room], "other_weights": other["answer_weights"][:room]}

    @property
    def places(self) -> Any:
        """Where each row came from; None where unknown."""
        return getattr(self.rows, "places", None)

    @property
    def lengths(self) -> Any:
        """Tokens of each row; None where unknown."""
        return getattr(self.rows, "lengths", None)

    @property
    def fingerprint(self) -> str:
        """Of the rows and the limit, which decide the mismatched answers; empty where the rows have none."""
        known = getattr(self.rows, "fingerprint", "")
        return sha256_of(f"{known} {self.limit}") if known else ""


def _others(rows: Any) -> np.ndarray:
    """For each row the number of the row whose answer it gets, ``[R]``."""
    prompts = [sha256_of(np.ascontiguousarray(rows[index]["prompt_ids"]).data) for index in range(len(rows))]
    count, others = len(rows), np.zeros(len(rows), dtype=np.int64)
    if len(set(prompts)) < 2:
        message = f"all {count:,} rows have the same prompt, and stage kto compares answers to different prompts"
        raise UsageError(Problem(message, hint="add rows with other prompts"))
    other = next(index for index in range(count - 1, -1, -1) if prompts[index] != prompts[0])
    for index in range(count):
        if prompts[index - 1] != prompts[index]:
            other = (index - 1) % count
        others[index] = other
    return others


def collate_feedback(rows: Sequence[Mapping[str, Any]]) -> Batch:
    """Rows as one batch of B sequences.

    Returns:
        What `collate` returns; ``mismatched``, the same of the prompts with other answers; ``good`` bool ``[B]``;
        ``row_weights`` float64 ``[B]``, 0 for fillers; and where rows have it, ``reference`` float64 ``[B, 2]``, the
        log-probabilities of answers and mismatched answers.
    """
    batch = collate([answered(row, "answer") for row in rows])
    batch["mismatched"] = collate([answered(row, "other") for row in rows])
    batch["good"] = torch.tensor([bool(row["good"]) for row in rows])
    batch["row_weights"] = torch.tensor([float(not row.get("filler")) for row in rows], dtype=torch.float64)
    if "reference" in rows[0]:
        batch["reference"] = torch.from_numpy(np.stack([row["reference"] for row in rows]))
    return batch


@dataclass(frozen=True, slots=True)
class FeedbackScores:
    """Inputs of a loss for B answers, float64 ``[B]`` except ``good``.

    Args:
        gain: log-ratio of model and reference.
        logps: the model's log-probability.
        length: tokens of the answer.
        good: the mark, bool.
        divergence: mean gain of mismatched answers over the global batch, at least 0; a scalar.
    """

    gain: torch.Tensor
    logps: torch.Tensor
    length: torch.Tensor
    good: torch.Tensor
    divergence: float


class FeedbackObjective(Objective):
    """The mean loss over the answers of each global batch.

    Args:
        loss: maps scores to losses, ``[B]``.
        scale: factor from gains to rewards, for the logs.
        limit: most tokens of a prompt with another row's answer.
        load_reference: loads the reference; None for the model as it is before training.
    """

    def __init__(
        self,
        loss: Callable[[FeedbackScores], torch.Tensor],
        scale: float,
        limit: int,
        load_reference: Callable[[], Any] | None = None,
    ) -> None:
        self.loss, self.scale, self.limit = loss, scale, limit
        self.reference_metric, self.load_reference = ReferenceMetric("feedback", _both_logps), load_reference
        self._divergence = self._in_training = 0.0

    def datasets(self, train: Any, evaluation: Any) -> tuple[Any, Any]:
        found = [None if rows is None else MismatchedRows(rows, self.limit) for rows in (train, evaluation)]
        return found[0], found[1]

    def collate(self, rows: Rows) -> Batch:
        return collate_feedback(rows)

    def weight(self, batch: Batch) -> float:
        return float(batch["row_weights"].sum())

    def begin_step(self, batches: Iterable[Batch]) -> None:
        self._divergence = self._estimated(batches)

    def begin_evaluation(self, batches: Iterable[Batch]) -> None:
        self._in_training, self._divergence = self._divergence, 0.0
        self._divergence = self._estimated(batches)

    def end_evaluation(self) -> None:
        self._divergence = self._in_training

    def _estimated(self, batches: Iterable[Batch]) -> float:
        """Mean gain of mismatched answers over these batches of all processes, clamped at 0 as a divergence."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.context.strategy.device)

        def gained(batch: Batch) -> torch.Tensor:
            gains = _logps(self.scorer, batch["mismatched"]) - batch["reference"][:, 1]
            return torch.stack([(gains * batch["row_weights"]).sum(), batch["row_weights"].sum()])

        with self.context.estimating():
            for gain in self.context.each(gained, batches):
                sums += gain
        total, weight = self.context.strategy.sum(sums).tolist()
        return max(total / weight, 0.0) if weight else 0.0

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        logps, weights = _logps(self.scorer, batch), batch["row_weights"]
        gain = logps - batch["reference"][:, 0]
        scores = FeedbackScores(gain, logps, sequence_reductions.lengths(batch), batch["good"], self._divergence)
        self._note(scores, weights)
        return (
            (self.loss(scores) * weights)
            .sum()
            .to(torch.float64 if self.context.model.dtype == torch.float64 else torch.float32)
        )

    def _note(self, scores: FeedbackScores, weights: torch.Tensor) -> None:
        for name, marked in (("chosen", scores.good), ("rejected", ~scores.good)):
            self.log_metric(f"rewards/{name}", self.scale * scores.gain, weights * marked)
            self.log_metric(f"logps/{name}", scores.logps, weights * marked)
        over = (scores.gain - scores.divergence).sign() * torch.where(scores.good, 1.0, -1.0)
        self.log_metric("rewards/accuracies", (1 + over) / 2, weights)
        self.log_metric("divergence", torch.full_like(weights, scores.divergence), weights)

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        if not {"rewards/chosen", "rewards/rejected"} <= means.keys():
            return {}
        return {"rewards/margins": means["rewards/chosen"] - means["rewards/rejected"]}


def _logps(scorer: Any, batch: Batch) -> torch.Tensor:
    """Log-probability of each sequence's answer, float64 ``[B]``."""
    return sequence_reductions.sums(scorer.logps(batch), batch)


def _both_logps(scorer: Any, batch: Batch) -> torch.Tensor:
    """Log-probabilities of answers and of mismatched answers, ``[B, 2]``."""
    return torch.stack([_logps(scorer, batch), _logps(scorer, batch["mismatched"])], dim=1)
