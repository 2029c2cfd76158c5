"""Text out of tokens as they come, never half a character."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Detokenizer:
    """Turns a growing list of tokens into pieces of text that join to the text of all.

    Only the last few tokens are decoded anew: the new text is what their text has more than that of those already
    shown (as text-generation-inference does it); a tokenizer that drops a leading blank drops it from both.

    Args:
        tokenizer: of the tokens.
        skip_special: leave special tokens out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, skip_special: bool) -> None:
        self.tokenizer, self.skip_special = tokenizer, skip_special
        self.ids: list[int] = []
        self.shown = ""
        self._window, self._read = 0, 0

    def add(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self.ids.append(token)
        before = self.decode(self.ids[self._window : self._read])
        now = self.decode(self.ids[self._window :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._window, self._read = self._read, len(self.ids)
        self.shown += now[len(before) :]
        return now[len(before) :]

    def rest(self) -> str:
        """What is left when nothing more comes, an unfinished character as U+FFFD."""
        return self.decode(self.ids)[len(self.shown) :]

    def decode(self, ids: list[int]) -> str:
        """Exactly as the tokenizer says, blanks included."""
        text = self.tokenizer.decode(ids, skip_special_tokens=self.skip_special, clean_up_tokenization_spaces=False)
        return str(text)
