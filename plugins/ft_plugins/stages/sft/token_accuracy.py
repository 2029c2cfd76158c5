"""Token accuracy at evaluation."""

from __future__ import annotations

import torch

from ftcore.training.batching.collators import Batch
from ftcore.training.trainer import FtTrainer


class AccuracyTrainer(FtTrainer):
    """Evaluates ``accuracy`` too: the share of labels that are the most likely token, weighted as in the loss.

    It is counted with the loss, chunk by chunk. As a mean over labels it does not depend on batch size or packing.
    """

    def eval_loss_sum(self, batch: Batch) -> torch.Tensor:
        """Weighted sum of the losses; logs the hits."""
        losses, hits = self.scorer.nll_and_hits(batch)
        weights = batch["weights"][0, batch["positions"]]
        self.log_metric("accuracy", hits, weights)
        return (losses.double() * weights).sum()
