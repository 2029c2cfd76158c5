"""A reward model's forward pass: one score per sequence, read at its last token."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from ftcore.training.backend import BackendRuntime
from ftcore.training.batching.collators import Batch
from ftcore.training.forward.causal_lm import CausalLMForward


class RewardForward(CausalLMForward):
    """Computes the scores of a transformers sequence-classification model with one label.

    `hidden` selects the last tokens before the head, so the head computes nothing else.
    """

    reads_vocabulary = False

    def __init__(self, model: Any, backend: BackendRuntime | None = None) -> None:
        super().__init__(model, backend)
        self.fused = hasattr(self.inner, "score")

    def rewards(self, batch: Batch) -> torch.Tensor:
        """Scores of the batch's sequences, ``[S]``, in float32 (float64 where the model is)."""
        return self.logits(self.ended(batch))

    def logits(self, batch: Batch) -> torch.Tensor:
        """Scores at ``positions``, one per sequence, by the chosen way."""
        return self.run(batch, self._scores) if self.fused else self._own_logits(batch)

    def _scores(self, batch: Batch) -> torch.Tensor:
        hidden, head = self.hidden(batch), self.inner.score
        with torch.autocast(
            hidden.device.type, enabled=False
        ):  # bfloat16's 8 bits are too few for a difference of scores
            # PEFT's wrapper returns the active copy's weight; its first parameter is the original, of another dtype
            scores = head(hidden.to(head.weight.dtype))[:, 0]
        return scores if scores.dtype == torch.float64 else scores.float()

    def ended(self, batch: Batch) -> Batch:
        """The batch with ``positions`` at the last token of each sequence that is not the padding token.

        transformers reads the score there (modeling_layers.py, GenericForSequenceClassification), even where the
        padding token is the end-of-sequence token and ends a sequence.
        """
        padding = self.inner.config.get_text_config().pad_token_id
        padding = -1 if padding is None else padding
        starts, ids = batch["cu_seqlens"].tolist(), batch["input_ids"][0]
        before = batch.get("prefixes", [()] * (len(starts) - 1))
        ends = []
        for own, ranges in zip(pairwise(starts), before, strict=True):
            parts = [own, *reversed(ranges)]
            written = [(start, (ids[start:end] != padding).nonzero()[:, 0]) for start, end in parts]
            ends.append(next((start + int(found[-1]) for start, found in written if len(found)), parts[-1][0]))
        return {**batch, "positions": torch.tensor(ends, device=ids.device)}

    def read_at(self, batch: Batch) -> Batch:
        return self.ended(batch)

    @property
    def can_share(self) -> bool:
        return self.fused  # the model's own forward takes one sequence at a time

    def _own_logits(self, batch: Batch) -> torch.Tensor:
        """Scores by the model's own forward, one sequence at a time: padding could be mistaken for the end."""
        starts = batch["cu_seqlens"].tolist()
        half = self.compute_dtype.itemsize < 4
        with torch.autocast(batch["input_ids"].device.type, dtype=self.compute_dtype if half else None, enabled=half):
            scores = [
                self.inner(batch["input_ids"][:, start:end], use_cache=False).logits[0, 0]
                for start, end in pairwise(starts)
            ]
        together = torch.stack(scores)
        return together if together.dtype == torch.float64 else together.float()
