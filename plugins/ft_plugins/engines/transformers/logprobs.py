"""Log-probabilities and bytes of tokens."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import torch

from ftcore.api.inference_types import ScoredToken, TokenLogprob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def scored_token(tokenizer: PreTrainedTokenizerBase, scores: torch.Tensor, token: int, top: int) -> ScoredToken:
    """The log-probabilities of a token and of the ``top`` most likely tokens.

    Args:
        tokenizer: the tokenizer.
        scores: logits, float32 ``[vocabulary]``, before temperature and other processing.
        token: the chosen token.
        top: number of most likely tokens.
    """
    logprobs = scores.log_softmax(-1)
    values, ids = logprobs.topk(min(top, logprobs.numel()))
    best = zip(ids.tolist(), values.tolist(), strict=True)
    chosen = _likely(tokenizer, token, float(logprobs[token]))
    return ScoredToken(chosen, tuple(_likely(tokenizer, other, value) for other, value in best))


def _likely(tokenizer: PreTrainedTokenizerBase, token: int, logprob: float) -> TokenLogprob:
    text = str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return TokenLogprob(text, logprob, _bytes(tokenizer, token, text))


def _bytes(tokenizer: PreTrainedTokenizerBase, token: int, text: str) -> tuple[int, ...] | None:
    """The bytes of a token, also of an incomplete character."""
    if "\ufffd" not in text:
        return tuple(text.encode())
    written = str(tokenizer.convert_ids_to_tokens(token))
    if found := _BYTE.fullmatch(written):  # byte tokens of SentencePiece
        return (int(found[1], 16),)
    known = _byte_of()
    return tuple(known[letter] for letter in written) if all(letter in known for letter in written) else None


@cache
def _byte_of() -> dict[str, int]:
    """Letter -> byte in the tokens of byte-level BPE (GPT-2, encoder.py, bytes_to_unicode)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(byte): byte for byte in shown}
    hidden = [byte for byte in range(256) if byte not in shown]
    return letters | {chr(256 + number): byte for number, byte in enumerate(hidden)}
