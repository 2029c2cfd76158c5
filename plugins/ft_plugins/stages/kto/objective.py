"""Objective of answers marked good or bad: batches, mismatched answers, and the trainer.

An answer's gain over the reference is compared with a divergence: the mean gain of answers paired with other prompts
(arXiv 2402.01306, section 4.1). In training it is estimated over the whole global batch, across micro-batches and
processes, so a micro-batch of one row works. In an evaluation it is estimated over the whole set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ftcore.api.plan import Run
from ftcore.errors import Problem, UsageError
from ftcore.training.batching.collators import Batch, collate
from ftcore.training.batching.pairs import answered
from ftcore.training.batching.samplers import EpochLoader
from ftcore.training.losses import sequence_reductions
from ftcore.training.numerics import evaluating
from ftcore.training.reference.logprob_cache import ReferenceMetric, add_reference_logprobs
from ftcore.training.step.micro_batching import parts
from ftcore.training.trainer import FtTrainer
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


class FeedbackTrainer(FtTrainer):
    """Trains on the mean loss over the answers of each global batch.

    Args:
        run: plan, tokenizer and model.
        train: a `FeedbackDataset`; None where the run only evaluates.
        evaluation: the same; None for none.
        loss: maps scores to losses, ``[B]``.
        scale: factor from gains to rewards, for the logs.
        reference: loads the reference; None for the model as it is when the trainer is created.
    """

    def __init__(
        self,
        run: Run,
        *,
        train: Any,
        evaluation: Any = None,
        loss: Callable[[FeedbackScores], torch.Tensor],
        scale: float,
        reference: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(run, train=train, evaluation=evaluation, collator=collate_feedback)
        self.loss, self.scale = loss, scale
        self._divergence, limit = 0.0, run.plan.data.cutoff_len
        sets = [None if rows is None else MismatchedRows(rows, limit) for rows in (train, evaluation)]
        measure = ReferenceMetric("feedback", _both_logps)
        self.train_dataset, self.eval_dataset = add_reference_logprobs(self, measure, sets, reference)

    def weight(self, batch: Batch) -> float:
        return float(batch["row_weights"].sum())

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        batches, total = super().get_batch_samples(epoch_iterator, num_batches, device)
        with evaluating(self.model), self.accelerator.autocast():
            some = (part for batch in batches for part in parts(self, batch))
            self._divergence = self._estimated(map(self._prepare_inputs, some))
        return batches, total

    def evaluation_loop(self, dataloader: EpochLoader, *args: Any, **kwargs: Any) -> Any:
        training, self._divergence = self._divergence, 0.0
        with evaluating(self.model), self.accelerator.autocast():
            self._divergence = self._estimated(self.evaluation_batches(dataloader))
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        self._divergence = training
        return output

    def _estimated(self, batches: Any) -> float:
        """Mean gain of mismatched answers over these batches of all processes, clamped at 0 as a divergence."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)

        def gained(batch: Batch) -> torch.Tensor:
            gains = _logps(self.scorer, batch["mismatched"]) - batch["reference"][:, 1]
            return torch.stack([(gains * batch["row_weights"]).sum(), batch["row_weights"].sum()])

        for gain in self.each(gained, batches):
            sums += gain
        total, weight = self.accelerator.reduce(sums, "sum").tolist()
        return max(total / weight, 0.0) if weight else 0.0

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        logps, weights = _logps(self.scorer, batch), batch["row_weights"]
        gain = logps - batch["reference"][:, 0]
        scores = FeedbackScores(gain, logps, sequence_reductions.lengths(batch), batch["good"], self._divergence)
        self._note(scores, weights)
        return (
            (self.loss(scores) * weights)
            .sum()
            .to(torch.float64 if self.model.dtype == torch.float64 else torch.float32)
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
