"""Options of supervised fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ftcore.api.components import OptionGroup

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    pass


class AccuracyOptions(OptionGroup):
    """What is evaluated besides the loss."""

    compute_accuracy: bool = False
    """Whether evaluations count the labels that are the likeliest token: ``eval_accuracy``."""


class SupervisedOptions(AccuracyOptions):
    """What is evaluated and predicted besides the loss."""

    predict_with_generate: bool = False
    """With ``do_predict``: answer the prompts of the evaluation data by the generation options, and hold the answers
    against the data's, by BLEU-4 and ROUGE."""
    generation_max_length: Annotated[int, Field(ge=1)] | None = None
    """Of these answers: tokens of prompt and answer together, instead of ``max_length``; ``max_new_tokens`` wins."""
    generation_num_beams: Annotated[int, Field(ge=1)] | None = None
    """Of these answers: beams, instead of ``num_beams``."""
