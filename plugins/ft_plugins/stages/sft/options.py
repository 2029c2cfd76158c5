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
    """Report ``eval_accuracy``: the share of labels that are the model's most likely token."""


class SupervisedOptions(AccuracyOptions):
    """What is evaluated and predicted besides the loss."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = dict.fromkeys(
        ("predict_with_generate", "generation_max_length", "generation_num_beams"),
        Harmless("predictions are made after training"),
    )

    predict_with_generate: bool = False
    """With ``do_predict``: generate answers to the evaluation prompts with the generation options, and compare them
    with the data's answers by BLEU-4 and ROUGE."""
    generation_max_length: Annotated[int, Field(ge=1)] | None = None
    """For these answers: most tokens of prompt and answer together, instead of ``max_length``; ``max_new_tokens`` takes
    precedence."""
    generation_num_beams: Annotated[int, Field(ge=1)] | None = None
    """For these answers: number of beams, instead of ``num_beams``."""
