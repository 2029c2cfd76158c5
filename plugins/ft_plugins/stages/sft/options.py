"""Options of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from ftcore.api.components import Harmless, OptionGroup
from ftcore.api.option_groups import EVALUATES


class AccuracyOptions(OptionGroup):
    """What is evaluated besides the loss."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {"compute_accuracy": EVALUATES}

    compute_accuracy: bool = False
    """Whether evaluations count the labels that are the likeliest token: ``eval_accuracy``."""


class SupervisedOptions(AccuracyOptions):
    """What is evaluated and predicted besides the loss."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = dict.fromkeys(
        ("predict_with_generate", "generation_max_length", "generation_num_beams"),
        Harmless("predictions are made after training"),
    )

    predict_with_generate: bool = False
    """With ``do_predict``: answer the prompts of the evaluation data by the generation options, and hold the answers
    against the data's, by BLEU-4 and ROUGE."""
    generation_max_length: Annotated[int, Field(ge=1)] | None = None
    """Of these answers: tokens of prompt and answer together, instead of ``max_length``; ``max_new_tokens`` wins."""
    generation_num_beams: Annotated[int, Field(ge=1)] | None = None
    """Of these answers: beams, instead of ``num_beams``."""
