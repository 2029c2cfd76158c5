"""``add_tokens``, ``add_special_tokens`` and ``resize_vocab``: tokens that a model did not have, and their weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftcore.plan import Plan


def add_tokens(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds the plan's tokens in place; those that the vocabulary holds are left as they are."""
    before = len(tokenizer)
    tokenizer.add_tokens(list(plan.model.add_tokens))
    tokenizer.add_tokens(list(plan.model.add_special_tokens), special_tokens=True)
    tokenizer.ft_new_tokens = range(before, len(tokenizer))


def make_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives embedding and head a row for each token, in place; rows that were there and had a token keep their values.

    A new row is the mean of all old ones and noise of the size ``1 / sqrt(hidden size)``, as LLaMA-Factory's
    ``noise_init``, here from the same seed always: an adapter that does not hold the rows finds them again.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    new = sorted({*range(rows, len(tokenizer)), *getattr(tokenizer, "ft_new_tokens", ())})
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends: list[Any] = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    for end in ends:
        _begin(end.weight, new)
        if getattr(end, "bias", None) is not None:
            end.bias.data[new] = 0


def _begin(weight: Tensor, new: list[int]) -> None:
    """Writes the first values of new rows, in place."""
    import torch

    if not new:
        return
    old = torch.ones(len(weight), dtype=torch.bool)
    old[new] = False
    mean = weight.data[old.to(weight.device)].float().mean(0)
    size = weight.shape[1]
    noise = torch.randn(len(new), size, generator=torch.Generator().manual_seed(0)) / math.sqrt(size)
    weight.data[new] = (mean + noise.to(mean.device)).to(weight.dtype)
