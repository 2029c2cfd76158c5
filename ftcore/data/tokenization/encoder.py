"""Rendered conversations as tokens with labels: ids, weight in the loss, and the reason for it.

Whole texts are tokenised in batches, with offsets: the tokens are what `apply_chat_template` gives, and Rust does the
work. Control tokens that people wrote are text: only rows with such take the slow path, piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ftcore.api.samples import Message
from ftcore.data.chat_template.rendered import Rendered, Span
from ftcore.data.tokenization.loss_reasons import Reason
from ftcore.data.tokenization.word_cache_bpe import CachedBPE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ints = npt.NDArray[np.int32]

_READ = {"system": Reason.SYSTEM, "user": Reason.USER, "tool": Reason.TOOL}


@dataclass(frozen=True, slots=True)
class Encoded:
    """T tokens, and the characters ``starts`` to ``ends`` that each stands for.

    Tokens that make up one character together stand for all of it; so do those of a control token that is text.
    """

    ids: Ints
    starts: Ints
    ends: Ints


@dataclass(frozen=True, slots=True)
class Labelled:
    """T tokens with float32 weights (0: not trained) and uint8 `Reason`."""

    encoded: Encoded
    weights: npt.NDArray[np.float32]
    reasons: npt.NDArray[np.uint8]


def encode(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered]) -> list[Encoded]:
    """Tokens of each text; nothing is added, cut off or padded."""
    return Encoder(tokenizer)(rendered)


class Encoder:
    """Tokens of many texts of one tokenizer; nothing is added, cut off or padded.

    From a hundred texts on it cuts them into words itself where that is known to give the same tokens.
    """

    _MANY = 100
    _CHECKED = 20

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()  # tokenizer.json may switch both on
        self._backend.no_padding()
        self._backend.encode_special_tokens = False
        self._cutter: CachedBPE | None = None
        self._asked = False

    def __call__(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """The tokens of each text."""
        plain = [one.text for one in rendered if not one.literal]
        if len(plain) >= self._MANY and not self._asked:
            self._asked, self._cutter = True, self._checked(CachedBPE.of(self._backend), plain[: self._CHECKED])
        encoded = iter(self._encode(plain))
        return [_in_pieces(self._backend, one) if one.literal else next(encoded) for one in rendered]

    def _encode(self, texts: Sequence[str]) -> list[Encoded]:
        if self._cutter is None:
            return self._by_backend(texts)
        covered = [self._cutter.covers(text) for text in texts]
        cut = iter(self._cutter.encode([text for text, fits in zip(texts, covered, strict=True) if fits]))
        found = [next(cut) if fits else None for fits in covered]
        rest = iter(self._by_backend([text for text, one in zip(texts, found, strict=True) if one is None]))
        return [next(rest) if one is None else Encoded(*one) for one in found]

    def _by_backend(self, texts: Sequence[str]) -> list[Encoded]:
        return (
            [_whole(one) for one in self._backend.encode_batch(list(texts), add_special_tokens=False)] if texts else []
        )

    def _checked(self, cutter: CachedBPE | None, texts: Sequence[str]) -> CachedBPE | None:
        """The cutter, if it gives the backend's tokens for these texts; a plugin's tokenizer may do anything."""
        if cutter is None:
            return None
        texts = [text for text in texts if cutter.covers(text)]
        pairs = zip(cutter.encode(texts), self._by_backend(texts), strict=True)
        same = all(
            one is None or all(map(np.array_equal, one, (other.ids, other.starts, other.ends))) for one, other in pairs
        )
        return cutter if same else None


def label(
    encoded: Encoded,
    rendered: Rendered,
    stop_ids: Sequence[int],
    *,
    train_on_prompt: bool = False,
    mask_history: bool = False,
) -> Labelled:
    """Weight and reason of each token.

    A token is trained when it overlaps what the model says, as in transformers' assistant mask
    (`PreTrainedTokenizerBase.apply_chat_template`): from the first token of the first character to the first token of
    the last one.

    Args:
        encoded, rendered: of one conversation.
        stop_ids: tokens that end the model's turn.
        train_on_prompt: everything else is trained too.
        mask_history: of the answers only the last one is trained.
    """
    weights = np.full(len(encoded.ids), 1.0 if train_on_prompt else 0.0, dtype=np.float32)
    reasons = np.full(len(encoded.ids), Reason.TEMPLATE, dtype=np.uint8)
    of_message = message_weights(rendered.messages, train_on_prompt=train_on_prompt, mask_history=mask_history)
    bounds = iter(_overlaps(encoded, [*rendered.read, *rendered.said]))
    for span in rendered.read:
        first, last = next(bounds)
        weights[first:last] = of_message[span.message]
        reasons[first:last] = _READ[rendered.messages[span.message].role]
    for span in rendered.said:
        first, last = next(bounds)
        weights[first:last] = of_message[span.message]
        trained = of_message[span.message] > 0
        reasons[first:last] = Reason.ASSISTANT if trained else Reason.HISTORY
        if trained and last > first and encoded.ids[last - 1] in stop_ids:
            reasons[last - 1] = Reason.END_OF_TURN
    return Labelled(encoded, weights, reasons)


def message_weights(messages: Sequence[Message], *, train_on_prompt: bool, mask_history: bool) -> list[float]:
    """Each message's weight in the loss: its own where it has one, else what the run says."""
    last = max((number for number, message in enumerate(messages) if message.role == "assistant"), default=-1)
    weights = []
    for number, message in enumerate(messages):
        if message.train is not None:
            weights.append(message.train)
        elif message.role == "assistant":
            weights.append(0.0 if mask_history and number != last else 1.0)
        else:
            weights.append(1.0 if train_on_prompt else 0.0)
    return weights


def _overlaps(encoded: Encoded, spans: Sequence[Span]) -> list[tuple[int, int]]:
    """Of each span the tokens ``first`` to ``last`` (exclusive)."""
    # char_to_token gives the first token that covers a character; offsets never decrease, so that is a bisection.
    characters = [span.start for span in spans] + [span.end - 1 for span in spans]
    found = np.searchsorted(encoded.ends, characters, side="right").tolist()
    bounds = []
    for span, first, last in zip(spans, found[: len(spans)], found[len(spans) :], strict=True):
        covered = last < len(encoded.ids) and encoded.starts[last] < span.end
        bounds.append((first, last + 1 if covered else last))
    return bounds


def _whole(encoding: Any) -> Encoded:
    offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
    return Encoded(np.array(encoding.ids, dtype=np.int32), offsets[:, 0].copy(), offsets[:, 1].copy())


def _in_pieces(backend: Any, rendered: Rendered) -> Encoded:
    """Literal control tokens by the tokenizer's model alone, what lies between them as usual (as transformers does).

    What was there before is not encoded again: a prompt of 900 KB of one control token took 5.6 s, and takes 1.9.
    """
    pieces, position = [], 0
    usual, literal = dict[str, Encoded](), dict[str, Encoded]()
    for start, end in (*rendered.literal, (len(rendered.text), len(rendered.text))):
        if position < start:
            text = rendered.text[position:start]
            if position == 0:
                pieces.append(_whole(backend.encode(text, add_special_tokens=False)))
            else:
                if text not in usual:
                    usual[text] = _usual(backend, text)
                pieces.append(_moved(usual[text], position))
        if start < end:
            text = rendered.text[start:end]
            if text not in literal:
                literal[text] = _literal(backend, text)
            pieces.append(_moved(literal[text], start))
        position = end
    return Encoded(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("ids", "starts", "ends")))


def _moved(encoded: Encoded, by: int) -> Encoded:
    """The same tokens further on in the text."""
    return Encoded(encoded.ids, encoded.starts + np.int32(by), encoded.ends + np.int32(by))


def _usual(backend: Any, text: str) -> Encoded:
    # After a line break, so that SentencePiece tokenizers do not put a blank before the piece; it is removed again.
    line_break = backend.encode("\n", add_special_tokens=False).ids
    encoded = _whole(backend.encode("\n" + text, add_special_tokens=False))
    count = len(line_break)
    if encoded.ids[:count].tolist() == line_break:
        return Encoded(encoded.ids[count:], encoded.starts[count:] - 1, encoded.ends[count:] - 1)
    return _whole(backend.encode(text, add_special_tokens=False))


def _literal(backend: Any, text: str) -> Encoded:
    line_break = _model_ids(backend, "\n")
    ids = _model_ids(backend, "\n" + text)
    ids = ids[len(line_break) :] if ids[: len(line_break)] == line_break else _model_ids(backend, text)
    assert backend.token_to_id(text) not in ids  # else the vocabulary itself holds the control token as a word
    size = len(ids)
    return Encoded(
        np.array(ids, dtype=np.int32),
        np.zeros(size, dtype=np.int32),
        np.full(size, len(text), dtype=np.int32),
    )


def _model_ids(backend: Any, text: str) -> list[int]:
    """Tokens by normalizer, pre-tokenizer and model, without any added token."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text]
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]
