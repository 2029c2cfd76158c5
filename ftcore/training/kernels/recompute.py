"""Tensors that the backward pass makes again, because that is cheap, instead of keeping them.

Whoever makes such a tensor notes on it how (`tag_recompute`); a product that would keep it as its input keeps the parts
instead (`saved_inputs`), which others keep anyway. Products of matrices are never made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Make = Callable[..., torch.Tensor]
_NAME = "_ft_kept"


class SavedForRecompute(NamedTuple):
    """What is kept of a tensor.

    Args:
        make: makes it of the parts, equal to the bit; None where the one part is the tensor itself.
        parts: without gradients.
    """

    make: Make | None
    parts: tuple[torch.Tensor, ...]


def tag_recompute(tensor: torch.Tensor, make: Make, *parts: torch.Tensor) -> torch.Tensor:
    """The tensor, on which stands how it is made of the parts."""
    if not tensor.is_inference():  # else nothing goes backward
        setattr(tensor, _NAME, (SavedForRecompute(make, tuple(part.detach() for part in parts)), tensor._version))
    return tensor


def version(tensor: torch.Tensor) -> int:
    """How often the tensor was written to; 0 under inference mode, where nobody counts."""
    return 0 if tensor.is_inference() else tensor._version


def saved_inputs(tensor: torch.Tensor) -> SavedForRecompute:
    """The parts, where they are known and the tensor was not written to since; else itself."""
    found, noted = getattr(tensor, _NAME, (None, 0))
    return found if found is not None and noted == version(tensor) else SavedForRecompute(None, (tensor.detach(),))


def rematerialize(make: Make | None, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensor, of what `saved_inputs` returned."""
    return parts[0] if make is None else make(*parts)
