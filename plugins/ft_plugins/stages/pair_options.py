"""Options of the stages that read pairs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from ftcore.checks import place
from ftcore.components import OptionGroup
from ftcore.errors import Problem

if TYPE_CHECKING:
    from ftcore.plan import Plan


class PairOptions(OptionGroup):
    """How pairs are computed."""

    share_prompt: bool | Literal["auto"] = "auto"
    """Whether the prompt is computed once for both answers: ``auto``, where that is the same and takes less time,
    decided for each pair by its lengths; true, always, and an error where it is not the same; false, never."""


def sharing_problems(plan: Plan) -> Iterable[Problem]:
    """Noise that depends on the answer, and one prompt for both."""
    options: Any = plan.stage.options
    if options.share_prompt is True and plan.transformers.get("neftune_noise_alpha"):
        message = "share_prompt is true, and neftune_noise_alpha makes other noise for each answer"
        yield Problem(message, place(plan, "share_prompt"), "write share_prompt: auto, or drop neftune_noise_alpha")
