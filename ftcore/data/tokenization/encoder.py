"""Encodes rendered conversations: token ids, loss weights, and the reason for each weight.

Whole texts are tokenised in batches with offsets, which gives the tokens of `apply_chat_template`. Control tokens in
user content are encoded as text; only rows with such tokens are encoded piece by piece, which is slower.
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
    """T tokens with their characters ``starts`` to ``ends``.

    Several tokens of one character all have the span of the character; so do tokens of a control token in content.
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
    """Encodes each text, without special tokens, truncation or padding."""
    return Encoder(tokenizer)(rendered)


class Encoder:
    """Encodes texts without special tokens, truncation or padding.

    From a hundred texts on, `CachedBPE` encodes them if it is known to give the same tokens.
    """

    _MANY = 100
    _CHECKED = 20

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()  # tokenizer.json may enable both
        self._backend.no_padding()
        self._backend.encode_special_tokens = False
        self._cutter: CachedBPE | None = None
        self._cutter_checked = False

    def __call__(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """The tokens of each text."""
        plain = [one.text for one in rendered if not one.literal]
        if len(plain) >= self._MANY and not self._cutter_checked:
            self._cutter_checked = True
            self._cutter = self._checked(CachedBPE.of(self._backend), plain[: self._CHECKED])
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
        """The cached encoder, if it gives the backend's tokens for these texts; otherwise None."""
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

    A token is trained if it overlaps the assistant's text, as in transformers' assistant mask
    (`PreTrainedTokenizerBase.apply_chat_template`): from the first token of the first character to the first token of
    the last one.

    Args:
        encoded, rendered: tokens and text of one conversation.
        stop_ids: stop tokens.
        train_on_prompt: whether all other tokens are trained as well.
        mask_history: whether only the last answer is trained.
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
    """The loss weight of each message: its own weight, else that of the run's options."""
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
    """The tokens ``first`` to ``last`` (exclusive) of each span."""
    # The first token that covers a character, as char_to_token; offsets never decrease, so bisection finds it.
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
    """Encodes control tokens in content with the tokenizer's model only, other pieces as usual, as transformers does.

    Repeated pieces are encoded once: a prompt of 900 KB of one control token takes 1.9 s, and 5.6 s without.
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
    """The tokens with shifted offsets."""
    return Encoded(encoded.ids, encoded.starts + np.int32(by), encoded.ends + np.int32(by))


def _usual(backend: Any, text: str) -> Encoded:
    # The line break keeps SentencePiece tokenizers from adding a space before the piece; it is removed again.
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
    assert backend.token_to_id(text) not in ids  # otherwise the vocabulary has the control token as a word
    size = len(ids)
    return Encoded(
        np.array(ids, dtype=np.int32),
        np.zeros(size, dtype=np.int32),
        np.full(size, len(text), dtype=np.int32),
    )


def _model_ids(backend: Any, text: str) -> list[int]:
    """Token ids from normalizer, pre-tokenizer and model, without added tokens."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text]
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]
