"""Cheap tensors that the backward pass recomputes instead of storing.

The producer of such a tensor tags it with a function and its inputs (`tag_recompute`). A product that would store the
tensor stores these inputs instead (`saved_inputs`), which other operations store anyway. Matrix products are never
recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Make = Callable[..., torch.Tensor]
_NAME = "_ft_kept"


class SavedForRecompute(NamedTuple):
    """What is stored instead of a tensor.

    Args:
        make: recomputes it from the parts, bit for bit; None where the only part is the tensor itself.
        parts: without gradients.
    """

    make: Make | None
    parts: tuple[torch.Tensor, ...]


def tag_recompute(tensor: torch.Tensor, make: Make, *parts: torch.Tensor) -> torch.Tensor:
    """Tags a tensor with the function and the parts that recompute it, and returns it."""
    if not tensor.is_inference():  # in inference mode there is no backward pass
        setattr(tensor, _NAME, (SavedForRecompute(make, tuple(part.detach() for part in parts)), tensor._version))
    return tensor


def version(tensor: torch.Tensor) -> int:
    """The tensor's version, increased by each in-place write; 0 in inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def saved_inputs(tensor: torch.Tensor) -> SavedForRecompute:
    """The tagged parts, if the tensor has not been written to since; else the tensor itself."""
    found, noted = getattr(tensor, _NAME, (None, 0))
    return found if found is not None and noted == version(tensor) else SavedForRecompute(None, (tensor.detach(),))


def rematerialize(make: Make | None, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensor, recomputed from what `saved_inputs` returned."""
    return parts[0] if make is None else make(*parts)
