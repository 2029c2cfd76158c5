"""Turns samples into tokens with loss weights, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from ftcore.api.option_groups import DataOptions
from ftcore.api.samples import Chat, Feedback, Place, Preference, Sample, Text
from ftcore.data.chat_template.rendered import Rendered
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.multimodal.media_files import holds_media
from ftcore.data.preprocessing.documents import document, label_document
from ftcore.data.preprocessing.questions import NO_ANSWER
from ftcore.data.tokenization.encoder import Encoded, Encoder, Labelled, label
from ftcore.data.tokenization.truncation import PROMPT_TOO_LONG, kept_tokens
from ftcore.errors import RowError

_NEEDS_VISION = "use a vision model and a stage that trains on images, without streaming; or remove such rows"
ALIKE = "chosen and rejected are the same"
ALIKE_CUT = "chosen and rejected are the same up to cutoff_len"
IMAGES_TOO_LONG = "its images do not fit into cutoff_len (a smaller image_max_pixels gives fewer tokens per image)"


@dataclass(frozen=True, slots=True)
class Prepared:
    """One tokenised conversation, prompt or text.

    Args:
        rendered: the text.
        labelled: all tokens of the text.
        kept: number of leading tokens that are used.
        untrainable: why the row is not trained on; empty if it is.
    """

    rendered: Rendered
    labelled: Labelled
    kept: int
    untrainable: str

    @property
    def tokens(self) -> int:
        """Number of tokens before truncation."""
        return len(self.labelled.weights)

    @property
    def used(self) -> int:
        """Number of tokens that are used."""
        return self.kept

    @property
    def trained(self) -> int:
        """Number of target tokens of the loss. The first token has no prediction."""
        return int((self.labelled.weights[1 : self.kept] > 0).sum())

    @property
    def thoughtless(self) -> int:
        """Number of trained answers whose reasoning is not in the text."""
        lost = [span for span in self.rendered.said if span.message in self.rendered.lost]
        if not lost or self.untrainable:
            return 0
        starts = self.labelled.encoded.starts[: self.kept][self.labelled.weights[: self.kept] > 0]
        return sum(bool(((starts >= span.start) & (starts < span.end)).any()) for span in lost)


@dataclass(frozen=True, slots=True)
class PreparedPair:
    """Two conversations, the first of which is preferred; only their last answers are trained.

    Args:
        chosen, rejected: the whole conversations.
        prompt: length of the shared prompt, in tokens.
        untrainable: why the pair is not trained on; empty if it is.
    """

    chosen: Prepared
    rejected: Prepared
    prompt: int
    untrainable: str

    @property
    def tokens(self) -> int:
        """Number of tokens before truncation; the prompt counts once."""
        return self.chosen.tokens + self.rejected.tokens - self.prompt

    @property
    def used(self) -> int:
        """Number of tokens that are used; the prompt counts once."""
        return 0 if self.untrainable else self.chosen.kept + self.rejected.kept - self.prompt

    @property
    def trained(self) -> int:
        """Number of target tokens of the loss."""
        return self.chosen.trained + self.rejected.trained

    @property
    def thoughtless(self) -> int:
        """Number of answers whose reasoning is not in the text."""
        return 0 if self.untrainable else self.chosen.thoughtless + self.rejected.thoughtless


@dataclass(frozen=True, slots=True)
class PreparedFeedback:
    """A conversation with a labelled last answer; only this answer is trained.

    Args:
        chat: the whole conversation.
        good: the label.
        prompt: number of tokens before the answer.
    """

    chat: Prepared
    good: bool
    prompt: int

    @property
    def untrainable(self) -> str:
        """Why the row is not trained on; empty if it is."""
        return self.chat.untrainable

    @property
    def tokens(self) -> int:
        """Number of tokens before truncation."""
        return self.chat.tokens

    @property
    def used(self) -> int:
        """Number of tokens that are used."""
        return self.chat.kept

    @property
    def trained(self) -> int:
        """Number of target tokens of the loss."""
        return self.chat.trained

    @property
    def thoughtless(self) -> int:
        """1 if the reasoning of the answer is not in the text, else 0."""
        return self.chat.thoughtless


AnyPrepared = Prepared | PreparedPair | PreparedFeedback
Item = tuple[Place, AnyPrepared | RowError]
_Parts = tuple[Rendered, ...]


def prepare(
    samples: Iterable[tuple[Place, Sample | RowError]],
    renderer: Renderer,
    options: DataOptions,
    encoder: Encoder | None = None,
    *,
    questions: bool = False,
) -> Iterator[Item]:
    """Tokenises samples in order. A `RowError` is passed on, or yielded for a row that the template refuses.

    Args:
        samples: a conversation that does not end with the assistant is a prompt.
        renderer: the template with its tokenizer.
        options: ``cutoff_len``, ``train_on_prompt``, ``mask_history`` and ``preprocessing_batch_size`` are used.
        encoder: encoder of the renderer's tokenizer, to share it between calls.
        questions: whether a prompt without an answer is left out of training and evaluation.
    """
    samples, encoder = iter(samples), encoder or Encoder(renderer.tokenizer)
    while batch := list(islice(samples, options.preprocessing_batch_size)):
        parts = [_rendered(sample, renderer) for _, sample in batch]
        texts = [text for part in parts if isinstance(part, tuple) for text in part]
        encoded = iter(encoder(texts))
        for (place, sample), part in zip(batch, parts, strict=True):
            if isinstance(part, RowError):
                yield place, part
            else:
                assert not isinstance(sample, RowError)
                row = _prepared(sample, part, [next(encoded) for _ in part], renderer, options)
                unanswered = questions and isinstance(sample, Chat) and sample.messages[-1].role != "assistant"
                yield place, _unanswered(row) if unanswered else row


def _unanswered(row: AnyPrepared) -> AnyPrepared:
    """Marks a prompt as not trainable."""
    assert isinstance(row, Prepared)
    return row if row.untrainable else replace(row, kept=0, untrainable=NO_ANSWER)


def _rendered(sample: Sample | RowError, renderer: Renderer) -> _Parts | RowError:
    """The rendered texts of a sample; a preference has two."""
    if isinstance(sample, RowError):
        return sample
    try:
        _check_media(sample, renderer)
        match sample:
            case Text():
                return (document(renderer, sample.text),)
            case Preference():
                prompt = sample.prompt
                sides = (sample.chosen, sample.rejected)
                return tuple(_last_only(replace(prompt, messages=(*prompt.messages, side)), renderer) for side in sides)
            case Feedback():
                return (_last_only(sample.chat, renderer),)
            case Chat():
                return (_chat(sample, renderer),)
    except RowError as error:
        return error


def _chat(chat: Chat, renderer: Renderer) -> Rendered:
    if chat.messages[-1].role != "assistant":
        return renderer.prompt(chat.messages, chat.tools)
    rendered = renderer.render(chat)
    return renderer.pictures.placed(rendered, chat.images) if renderer.pictures and chat.images else rendered


def _check_media(sample: Sample, renderer: Renderer) -> None:
    """Raises an error for media that would not be read."""
    if not (media := holds_media(sample)):
        return
    if renderer.pictures is None:
        reason = f"the row has {media}, and this run reads text only"
        raise RowError(reason, cure=_NEEDS_VISION)
    if not isinstance(sample, Chat) or sample.messages[-1].role != "assistant" or sample.videos:
        reason = f"the row has {media}; only images in conversations that end with an answer are supported"
        raise RowError(reason, cure="remove such rows")


def _last_only(chat: Chat, renderer: Renderer) -> Rendered:
    """The conversation with only its last answer trained."""
    *before, last = chat.messages
    messages = (*(replace(message, train=0.0) for message in before), last)
    return renderer.render(replace(chat, messages=messages))


def _prepared(
    sample: Sample, texts: _Parts, encoded: Sequence[Encoded], renderer: Renderer, options: DataOptions
) -> AnyPrepared:
    stop_ids = () if isinstance(sample, Text) else renderer.stop_ids
    match sample:
        case Text():
            labelled = label_document(encoded[0], texts[0], renderer.tokenizer.eos_token_id)
            return Prepared(texts[0], labelled, min(len(labelled.weights), options.cutoff_len), "")
        case Preference():
            sides = [
                _cut(text, label(tokens, text, stop_ids), options) for text, tokens in zip(texts, encoded, strict=True)
            ]
            return _pair(sides[0], sides[1])
        case Feedback():
            chat = _cut(texts[0], label(encoded[0], texts[0], stop_ids), options)
            return PreparedFeedback(chat, sample.good, _prompt_length(chat))
        case Chat() if sample.messages[-1].role != "assistant":
            labelled = label(encoded[0], texts[0], stop_ids)
            length = len(labelled.weights)
            fits = length <= options.cutoff_len
            return Prepared(texts[0], labelled, length if fits else 0, "" if fits else PROMPT_TOO_LONG)
    labelled = label(
        encoded[0],
        texts[0],
        stop_ids,
        train_on_prompt=options.train_on_prompt,
        mask_history=options.mask_history,
    )
    return (
        _cut(texts[0], labelled, options)
        if not texts[0].images
        else _with_images(texts[0], labelled, renderer, options)
    )


def _cut(text: Rendered, labelled: Labelled, options: DataOptions) -> Prepared:
    return Prepared(text, labelled, *kept_tokens(labelled, options.cutoff_len))


def _with_images(text: Rendered, labelled: Labelled, renderer: Renderer, options: DataOptions) -> Prepared:
    """Image tokens are neither trained nor truncated: their number must equal the number of image features."""
    assert renderer.pictures is not None
    of_images = np.isin(labelled.encoded.ids, renderer.pictures.tokens)
    labelled.weights[of_images] = 0
    kept, untrainable = kept_tokens(labelled, options.cutoff_len)
    if not untrainable and of_images[kept:].any():
        kept, untrainable = 0, IMAGES_TOO_LONG
    return Prepared(text, labelled, kept, untrainable)


def _prompt_length(row: Prepared) -> int:
    """Number of tokens before the first trained token; all tokens if none is trained."""
    trained = np.flatnonzero(row.labelled.weights)
    return int(trained[0]) if len(trained) else len(row.labelled.weights)


def _pair(chosen: Prepared, rejected: Prepared) -> PreparedPair:
    left, right = chosen.labelled.encoded.ids, rejected.labelled.encoded.ids
    most = min(_prompt_length(chosen), _prompt_length(rejected))
    # The first token of an answer may include the last characters of the prompt; then the shared part is shorter.
    different = np.flatnonzero(left[:most] != right[:most])
    prompt = int(different[0]) if len(different) else most
    why = chosen.untrainable or rejected.untrainable
    if not why and np.array_equal(left[: chosen.kept], right[: rejected.kept]):
        why = ALIKE if np.array_equal(left, right) else ALIKE_CUT
    return PreparedPair(chosen, rejected, prompt, why)
