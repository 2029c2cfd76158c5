"""The Bradley-Terry loss of reward models."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ftcore.api.plan import Run
from ftcore.training.batching.collators import Batch
from ftcore.training.batching.pairs import collate_pairs
from ftcore.training.forward.reward import RewardForward
from ftcore.training.trainer import FtTrainer


class RewardTrainer(FtTrainer):
    """Trains scores so that the chosen answer of each pair has the higher one (Bradley-Terry, as in 2009.01325).

    Args:
        run: plan, tokenizer, and a sequence-classification model with one label.
        train: a `PairDataset`; None where the run only evaluates.
        evaluation: the same; None for none.
    """

    def __init__(self, run: Run, *, train: Any, evaluation: Any = None) -> None:
        config = run.model.config.get_text_config()
        if config.pad_token_id is None:  # without it transformers accepts batches of one sequence only
            config.pad_token_id = run.tokenizer.pad_token_id
        super().__init__(run, train=train, evaluation=evaluation, collator=collate_pairs)

    def make_scorer(self, model: Any) -> RewardForward:
        return RewardForward(model, self.backend)

    def weight(self, batch: Batch) -> float:
        return float(batch["pair_weights"].sum())

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        chosen, rejected = self.scorer.rewards(batch).chunk(2)
        weights = batch["pair_weights"]
        self.log_metric("accuracy", (chosen > rejected).double(), weights)
        self.log_metric("margin", chosen - rejected, weights)
        self.log_metric("rewards/chosen", chosen, weights)
        self.log_metric("rewards/rejected", rejected, weights)
        losses = -functional.logsigmoid(chosen.double() - rejected.double())
        return (losses * weights).sum()
