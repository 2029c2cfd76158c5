"""Next-token loss, the objective of stages pt and sft."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftcore.training.batching.collators import Batch, collate
from ftcore.training.objective import Objective, Rows


class NextToken(Objective):
    """The negative log-likelihood of the labels, weighted.

    Args:
        collator: makes batches of rows.
        reads_images: whether the batches hold images.
        accuracy: whether an evaluation logs ``accuracy``, the share of labels that are the most likely token, weighted
            as in the loss. It is counted with the loss, chunk by chunk. As a mean over labels it does not depend on
            batch size or packing.
    """

    def __init__(
        self, collator: Callable[[Rows], Batch] = collate, *, reads_images: bool = False, accuracy: bool = False
    ) -> None:
        self.collator, self.reads_images, self.accuracy = collator, reads_images, accuracy

    def collate(self, rows: Rows) -> Batch:
        return self.collator(rows)

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        loss: torch.Tensor = self.scorer.weighted_nll(batch)
        return loss

    def eval_loss_sum(self, batch: Batch) -> torch.Tensor:
        if not self.accuracy:
            return self.loss_sum(batch)
        losses, hits = self.scorer.nll_and_hits(batch)
        weights = batch["weights"][0, batch["positions"]]
        self.log_metric("accuracy", hits, weights)
        return torch.as_tensor((losses.double() * weights).sum())


def next_token(accuracy: bool, images: Any = None, collator: Callable[[Rows], Batch] = collate) -> NextToken:
    """The objective; ``images`` reads images, where the model does."""
    from ftcore.training.batching.collators import ImageCollator

    if images:
        return NextToken(ImageCollator(images), reads_images=True, accuracy=accuracy)
    return NextToken(collator, accuracy=accuracy)
