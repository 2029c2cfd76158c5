"""The Bradley-Terry loss of reward models."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ftcore.training.backend import BackendRuntime
from ftcore.training.batching.collators import Batch
from ftcore.training.batching.pairs import collate_pairs
from ftcore.training.forward.reward import RewardForward
from ftcore.training.objective import Objective, Rows


class BradleyTerry(Objective):
    """Scores such that the chosen answer of each pair has the higher one (Bradley-Terry, as in 2009.01325).

    Args:
        padding: the tokenizer's padding token. A model without one gets it, as transformers' classification models
            accept batches of one sequence only without it.
    """

    def __init__(self, padding: int | None) -> None:
        self.padding = padding

    def before_transforms(self, model: Any) -> None:
        config = model.config.get_text_config()
        if config.pad_token_id is None:
            config.pad_token_id = self.padding

    def forward_of(self, model: Any, backend: BackendRuntime) -> RewardForward:
        return RewardForward(model, backend)

    def collate(self, rows: Rows) -> Batch:
        return collate_pairs(rows)

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
