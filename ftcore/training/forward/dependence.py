"""Checks of dependence: answers must depend on their images, and no token on those that follow it.

Both are tested on the loaded model, whatever its type. A wrong class, argument or mask is found here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from ftcore.errors import Problem, UsageError
from ftcore.training.batching.collators import Batch
from ftcore.training.numerics import equivalent, fixed_random

COMPARED = 8
"""Number of labels of a row with images at which outputs are compared, counted from the end."""


class ProbedModel(Protocol):
    """The checked model; `ftcore.training.forward.causal_lm.CausalLMForward` implements it."""

    inner: Any
    """The model without wrappers."""

    def sequences(self, batch: Batch) -> Iterator[tuple[dict[str, Any], torch.Tensor, torch.Tensor]]:
        """Each sequence: the model's arguments, the places of its labels, which tokens stand for images."""

    def logits_of(self, inputs: Mapping[str, Any], at: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, V]`` at these places."""


def check_causal(scorer: ProbedModel, batch: Batch, logits: torch.Tensor, common: int, tolerance: float) -> None:
    """Refuses a model whose logits at a token depend on the tokens after it.

    Args:
        scorer: of the model.
        batch: two sequences with a shared prefix and different continuations.
        logits: ``[T, V]`` at the batch's labels.
        common: tokens of the shared prefix; without labels there, nothing is compared.
        tolerance: of a difference, relative to the largest logit.

    Raises:
        UsageError: the logits depend on later tokens.
    """
    positions, second = batch["positions"], int(batch["cu_seqlens"][1])
    one = logits[positions < common]
    other = logits[(positions >= second) & (positions < second + common)]
    if one.shape == other.shape and _moved(one, other, tolerance):
        raise UsageError(_leaks(scorer))


def check_images(scorer: ProbedModel, batch: Batch, tolerance: float) -> bool:
    """Refuses a model whose outputs do not depend on a row's images, or depend on the answer to predict.

    Other pixels must change the logits at the labels after the first image. Another token at the end of the answer must
    not. The check takes three forward passes over one row, without gradients.

    Args:
        scorer: of the model, in evaluation mode.
        batch: on the model's device.
        tolerance: as in `check_causal`.

    Returns:
        Whether the batch has a row that can be checked: one with a label after an image.

    Raises:
        UsageError: as above.
    """
    for (inputs, at, of_images), images in zip(scorer.sequences(batch), batch["images"], strict=True):
        if images and not of_images.any():
            raise UsageError(_blind(scorer, "has no token that stands for one"))
        at = at[at > int(of_images.nonzero()[0])][-COMPARED:] if images else at[:0]
        if not len(at):
            continue
        expected = scorer.logits_of(inputs, at)
        others = {name: _noise(value) if value.is_floating_point() else value for name, value in inputs.items()}
        if all(others[name] is inputs[name] for name in inputs):
            raise UsageError(_blind(scorer, "takes none of what its processor makes of an image"))
        if torch.equal(scorer.logits_of(others, at), expected):
            raise UsageError(_blind(scorer, "gives the same loss for any image"))
        if _moved(_after(scorer, inputs, at, of_images), expected, tolerance):
            raise UsageError(_leaks(scorer))
        return True
    return False


def _after(scorer: ProbedModel, inputs: dict[str, Any], at: torch.Tensor, of_images: torch.Tensor) -> torch.Tensor:
    """Logits at the same positions, with another text token of the row after the last of them."""
    ids, last = inputs["input_ids"].clone(), int(at[-1]) + 1
    others = ids[0][~of_images & (ids[0] != ids[0, last])]
    if len(others):
        ids[0, last] = others[-1]
    return scorer.logits_of(inputs | {"input_ids": ids}, at)


def _noise(value: torch.Tensor) -> torch.Tensor:
    """Random numbers of the same shape, equal at every call; the run's random state does not change."""
    return fixed_random(*value.shape).to(value)


def _moved(logits: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    # outputs that are not finite are the guard's to report
    return bool((logits - expected).isfinite().all()) and not equivalent(logits, expected, tolerance)


def _leaks(scorer: ProbedModel) -> Problem:
    reason = f"{type(scorer.inner).__name__} is not causal: it predicts a token from tokens that follow it"
    return Problem(reason, hint="choose a causal language model")


def _blind(scorer: ProbedModel, what: str) -> Problem:
    reason = f"the rows have images, and {type(scorer.inner).__name__} {what}"
    return Problem(reason, hint="choose a model that reads images, or remove the images from the rows")
