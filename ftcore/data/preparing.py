"""Samples as tokens with labels, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from ftcore.data.rendering import Rendered, Renderer
from ftcore.data.tokenizing import Labelled, encode, label
from ftcore.data.truncation import kept_tokens
from ftcore.errors import RowError
from ftcore.groups import DataOptions
from ftcore.samples import Chat, Place, Sample


@dataclass(frozen=True, slots=True)
class Prepared:
    """One conversation, ready to train on.

    Args:
        rendered: its text.
        labelled: all of its tokens.
        kept: how many of the first tokens are used.
        untrainable: why none is; empty when the row is trained on.
    """

    rendered: Rendered
    labelled: Labelled
    kept: int
    untrainable: str


Item = tuple[Place, Prepared | RowError]


def prepare(
    samples: Iterable[tuple[Place, Sample | RowError]], renderer: Renderer, options: DataOptions
) -> Iterator[Item]:
    """Each sample, in order, as tokens; `RowError` goes through, and is added where the template refuses a row.

    Args:
        samples: conversations that end with the assistant.
        renderer: the template with its tokenizer.
        options: ``cutoff_len``, ``train_on_prompt``, ``mask_history`` and ``preprocessing_batch_size`` are used.
    """
    samples = iter(samples)
    while batch := list(islice(samples, options.preprocessing_batch_size)):
        rendered = [(place, _rendered(sample, renderer)) for place, sample in batch]
        encoded = iter(encode(renderer.tokenizer, [text for _, text in rendered if isinstance(text, Rendered)]))
        for place, text in rendered:
            if isinstance(text, RowError):
                yield place, text
                continue
            labelled = label(
                next(encoded),
                text,
                renderer.stop_ids,
                train_on_prompt=options.train_on_prompt,
                mask_history=options.mask_history,
            )
            yield place, Prepared(text, labelled, *kept_tokens(labelled, options.cutoff_len))


def _rendered(sample: Sample | RowError, renderer: Renderer) -> Rendered | RowError:
    if isinstance(sample, RowError):
        return sample
    if not isinstance(sample, Chat):
        return RowError(f"the row is a {type(sample).__name__}, where conversations are needed")
    if sample.messages[-1].role != "assistant":
        reason = f"the conversation ends with {sample.messages[-1].role!r}"
        return RowError(reason, cure="add the answer, or remove the last turn")
    try:
        return renderer.render(sample)
    except RowError as error:
        return error
