"""Token accuracy at evaluation."""

from __future__ import annotations

import torch

from ftcore.training.batching.collators import Batch
from ftcore.training.trainer import FtTrainer


class AccuracyTrainer(FtTrainer):
    """Evaluates ``accuracy`` as well: the share of the labels that are the likeliest token, weighted as in the loss.

    It is counted where the loss is made, chunk by chunk. Being a mean over labels, not over rows or batches, it is the
    same whatever the batch size and the packing.
    """

    def eval_loss_sum(self, batch: Batch) -> torch.Tensor:
        """Weighted sum of the losses; hits are noted."""
        losses, hits = self.scorer.nll_and_hits(batch)
        weights = batch["weights"][0, batch["positions"]]
        self.note("accuracy", hits, weights)
        return (losses.double() * weights).sum()
