"""Tokenises raw text: a document with its begin and end tokens, all of which are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ftcore.api.samples import Text
from ftcore.data.chat_template.rendered import Rendered
from ftcore.data.chat_template.renderer import Renderer, check_text
from ftcore.data.multimodal.images import ImageReader
from ftcore.data.tokenization.encoder import Encoded, Labelled
from ftcore.data.tokenization.loss_reasons import Reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftcore.api.plan import Plan


def renderer_of(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> Renderer:
    """The renderer of the plan's stage for `ftcore.data.preprocessing.prepare.prepare`. Plain text has no template.

    Raises:
        UsageError: see `Renderer.from_plan`.
    """
    if plan.stage.component.samples == (Text.__name__,):
        return Renderer(tokenizer, "")
    renderer = Renderer.from_plan(plan, tokenizer)
    if plan.stage.component.supports_images:
        renderer.pictures = ImageReader.of(plan, tokenizer)
    return renderer


def document(renderer: Renderer, text: str) -> Rendered:
    """The text with the begin-of-sequence token, if the tokenizer adds one, and the end-of-sequence token.

    Control tokens inside the text are encoded as text.

    Raises:
        RowError: see `check_text`.
    """
    check_text(text)
    start, end = renderer.borders
    literal = tuple((first + len(start), last + len(start)) for first, last in renderer.controls_in(text))
    return Rendered(f"{start}{text}{end}", (), literal=literal)


def label_document(encoded: Encoded, rendered: Rendered, eos_token_id: int | None) -> Labelled:
    """Gives every token weight 1. The first token has no prediction and is never trained, as in conversations."""
    weights = np.ones(len(encoded.ids), dtype=np.float32)
    reasons = np.full(len(encoded.ids), Reason.TEXT, dtype=np.uint8)
    if len(encoded.ids) and encoded.ids[-1] == eos_token_id:
        reasons[-1] = Reason.END_OF_TURN
    return Labelled(encoded, weights, reasons)
