"""Decodes streamed tokens into text, without incomplete characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Detokenizer:
    """Turns a growing list of tokens into pieces of text whose concatenation is the text of all tokens.

    Only the last tokens are decoded again, with and without the new token; the difference is the new text, as in
    text-generation-inference. A leading space that the tokenizer drops is missing in both.

    Args:
        tokenizer: the tokenizer.
        skip_special: whether special tokens are omitted.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, skip_special: bool) -> None:
        self.tokenizer, self.skip_special = tokenizer, skip_special
        self.ids: list[int] = []
        self.shown = ""
        self._window, self._read = 0, 0

    def add(self, token: int) -> str:
        """The new text of this token; empty while a character is incomplete."""
        self.ids.append(token)
        before = self.decode(self.ids[self._window : self._read])
        now = self.decode(self.ids[self._window :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._window, self._read = self._read, len(self.ids)
        self.shown += now[len(before) :]
        return now[len(before) :]

    def rest(self) -> str:
        """The remaining text at the end; an incomplete character becomes U+FFFD."""
        return self.decode(self.ids)[len(self.shown) :]

    def decode(self, ids: list[int]) -> str:
        """Decodes tokens without cleaning up spaces."""
        text = self.tokenizer.decode(ids, skip_special_tokens=self.skip_special, clean_up_tokenization_spaces=False)
        return str(text)
