"""NEFTune: uniform noise on the input embeddings while training (https://arxiv.org/abs/2310.05914)."""

from __future__ import annotations

from typing import Any

import torch

from ftcore.training.batching.collators import Batch


class NeftuneNoise:
    """Adds noise of size ``alpha / sqrt(L * H)`` to each embedding, where L is the length of its sequence.

    transformers' hook uses the row's length as L, which for packed sequences is that of the whole batch.

    Args:
        embeddings: the model's input embeddings.
        alpha: ``neftune_noise_alpha``.
    """

    def __init__(self, embeddings: torch.nn.Module, alpha: float) -> None:
        self.alpha = alpha
        self.lengths = torch.empty(0)
        embeddings.register_forward_hook(self._add)

    def expect(self, batch: Batch) -> None:
        """Sets the lengths of the sequences of the next forward pass."""
        self.lengths = batch["cu_seqlens"].diff()

    def _add(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if not module.training:
            return None
        lengths = self.lengths.to(output.device)
        end_to_end = output.shape[:2] == (1, int(lengths.sum()))
        sizes = lengths.repeat_interleave(lengths)[None, :, None] if end_to_end else lengths[:, None, None]
        magnitude = self.alpha / (sizes * output.shape[-1]).sqrt()
        return output + (torch.rand_like(output) * 2 - 1) * magnitude.to(output.dtype)
