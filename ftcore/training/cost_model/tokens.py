"""The cost of the tokens of a batch. The model's shape and the positions alone decide, so a resume computes the
same."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ftcore.training.batching.collators import Batch
from ftcore.training.cost_model.prefix import PrefixCost


@dataclass(frozen=True, slots=True)
class CostModel:
    """Operations of a forward pass, weighted by time; the backward pass is assumed to be proportional.

    Args:
        token: operations of a token in the linear layers.
        pair: operations of a query and one key, weighted by the backend's ``attention_cost``.
        label: operations of the vocabulary head for a label.
    """

    token: float
    pair: float
    label: float

    @classmethod
    def of(cls, scorer: Any) -> CostModel:
        """The cost model of a scorer's model, without cached frozen layers
        (`ftcore.training.frozen_layer_cache.cache`)."""
        config, cost, prefix = (
            scorer.inner.config.get_text_config(),
            PrefixCost.of(scorer.inner, scorer.backend),
            scorer.frozen_layer_cache,
        )
        kept = prefix.first_trainable / len(prefix.layers) if prefix is not None and prefix.enabled else 0.0
        label = 2.0 * config.vocab_size * config.hidden_size if scorer.reads_vocabulary else 0.0
        pair = 4.0 * cost.width * cost.layers
        pair = scorer.backend.attention_cost * (pair * (1 - kept))
        return cls(2.0 * cost.weights * (1 - kept), pair, label)

    def __call__(self, batch: Batch) -> npt.NDArray[np.floating[Any]]:
        """The cost of each token, ``[N]``."""
        found = self.token + self.pair * visible(batch)
        found[batch["positions"].numpy()] += self.label
        return found


def visible(batch: Batch) -> npt.NDArray[np.int64]:
    """Number of keys that each token of a row sees, ``[N]``."""
    starts = batch["cu_seqlens"].tolist()
    before = batch.get("prefixes", ((),) * (len(starts) - 1))
    return np.concatenate(
        [
            np.arange(1, end - start + 1) + sum(last - first for first, last in ranges)
            for (start, end), ranges in zip(pairwise(starts), before, strict=True)
        ]
    )
