"""Adds new tokens and their embedding rows to a model.

New tokens come from the tokenizers of adapters, and from ``add_tokens``, ``add_special_tokens`` and ``resize_vocab``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, UsageError
from ftcore.models.adapters import adapter_folder, added_tokens, vocabulary_rows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftcore.api.plan import Plan


def add_tokens(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds the new tokens of adapters and plan in place; existing tokens are unchanged.

    Raises:
        UsageError: the added tokens of an adapter conflict with those of the base model or another adapter.
    """
    before = len(tokenizer)
    _add_of_adapters(plan, tokenizer)
    tokenizer.add_tokens(list(plan.model.add_tokens))
    tokenizer.add_tokens(list(plan.model.add_special_tokens), special_tokens=True)
    tokenizer.ft_new_tokens = range(before, len(tokenizer))


def _add_of_adapters(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds the tokens of each adapter with the ids of its training."""
    from tokenizers import AddedToken

    known, size = tokenizer.get_vocab(), len(tokenizer)
    whose: dict[int, tuple[str, str]] = {}
    for name in plan.model.adapter_name_or_path:
        for number, (text, special) in sorted(added_tokens(adapter_folder(plan, name)).items()):
            if number < size:
                continue  # a token of the base model
            if number in whose and whose[number][0] == text:
                continue
            if (problem := _conflict(plan, name, number, text, whose, known)) is not None:
                raise UsageError(problem)
            if number != len(tokenizer):
                reason = f"adapter {name} was trained with {text!r} as token {number:,}"
                reason += f", and the vocabulary of {plan.model.model_name_or_path} ends at {len(tokenizer):,}"
                hint = "write the base model that it was trained on, and before it the adapters that it builds on"
                raise UsageError(Problem(reason, plan.where("adapter_name_or_path"), hint))
            tokenizer.add_tokens([AddedToken(text, special=special, normalized=False)], special_tokens=special)
            whose[number], known[text] = (text, name), number


def _conflict(
    plan: Plan, name: str, number: int, text: str, whose: dict[int, tuple[str, str]], known: dict[str, int]
) -> Problem | None:
    """The problem of an id with two tokens, or of a token with two ids."""
    if number in whose:
        other, owner = whose[number]
        reason = f"token {number:,} is {other!r} in adapter {owner} and {text!r} in adapter {name}"
    elif text in known:
        place_of = next((f"adapter {owner}" for token, owner in whose.values() if token == text), "the base model")
        reason = f"{text!r} is token {known[text]:,} in {place_of} and token {number:,} in adapter {name}"
    else:
        return None
    hint = "added tokens must agree: train the second adapter on the first, or use only one"
    return Problem(reason, plan.where("adapter_name_or_path"), hint)


def rows_needed(plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of rows that embedding and head need; 0 if they need no change."""
    held = [vocabulary_rows(adapter_folder(plan, name), model) for name in plan.model.adapter_name_or_path]
    own = model.get_input_embeddings().weight.shape[0]
    grown = plan.model.grows_vocabulary or len(getattr(tokenizer, "ft_new_tokens", ())) > 0
    needed = max([*held, len(tokenizer) if grown else 0])
    return needed if grown or needed > own else 0


def make_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, needed: int) -> None:
    """Resizes embedding and head in place; existing rows keep their values.

    Args:
        model, tokenizer: model and tokenizer of one plan.
        needed: minimum number of rows; see `rows_needed`.

    A new row is the mean of the old rows plus noise of scale ``1 / sqrt(hidden size)``, as LLaMA-Factory's
    ``noise_init``. The seed is fixed, so that adapters without these rows get the same values again.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
    new = sorted({*range(rows, needed), *getattr(tokenizer, "ft_new_tokens", ())})
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends: list[Any] = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    for end in ends:
        _begin(end.weight, new)
        if getattr(end, "bias", None) is not None:
            end.bias.data[new] = 0


def _begin(weight: Tensor, new: list[int]) -> None:
    """Initialises new rows in place."""
    import torch

    from ftcore.training.numerics import fixed_random

    if not new:
        return
    old = torch.ones(len(weight), dtype=torch.bool)
    old[new] = False
    mean = weight.data[old.to(weight.device)].float().mean(0)
    size = weight.shape[1]
    noise = fixed_random(len(new), size) / math.sqrt(size)
    weight.data[new] = (mean + noise.to(mean.device)).to(weight.dtype)
