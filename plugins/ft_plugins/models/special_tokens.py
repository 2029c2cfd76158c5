"""Replaces ``bos_token``, ``eos_token`` and ``pad_token`` of the tokenizer by options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftcore.api.plan import Plan


def replace_tokens(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> None:
    """Sets the plan's special tokens in place.

    Raises:
        UsageError: with all tokens that the vocabulary lacks; a new token would have no weights.
    """
    wanted = {name: getattr(plan.model, name) for name in ("bos_token", "eos_token", "pad_token")}
    tokens = {name: token for name, token in wanted.items() if token is not None}
    vocabulary = tokenizer.get_vocab() if tokens else {}
    missing = [
        Problem(
            f"{name} {token!r} is not one token of this model's tokenizer",
            plan.where(name),
            f"leave it out to keep {getattr(tokenizer, name)!r}, or choose a token of its vocabulary",
        )
        for name, token in tokens.items()
        if token not in vocabulary
    ]
    if missing:
        raise UsageError(missing)
    if tokens:
        # As special tokens they are encoded as one token, even if they are ordinary words of the vocabulary.
        tokenizer.add_special_tokens(tokens)
