"""PiSSA adapters as ordinary ones (https://arxiv.org/abs/2404.02948, section 3, "Converting PiSSA to LoRA").

PiSSA subtracts ``s B0 A0`` from a weight and trains ``B A`` from there: ``W - s B0 A0 + s B A``. Relative to the
original weight the change is ``s (B A - B0 A0)``, an adapter of twice the rank: ``[B, -B0]`` and ``[A; A0]``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_plugins.methods.adapters import adapter_tensors
from ftcore.errors import RunError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

A, B = ".lora_A.", ".lora_B."


def keep_start(model: PeftModel) -> None:
    """Saves a new adapter's initial matrices on the model, for `converted`."""
    tensors = adapter_tensors(model)
    model.ft_pissa_start = {name: tensor.detach().clone() for name, tensor in tensors.items() if A in name or B in name}


def start_of(model: Any) -> dict[str, Tensor]:
    """What `keep_start` saved; empty where it was not called."""
    found: dict[str, Tensor] = vars(model).get("ft_pissa_start", {})
    return found


def converted(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], start: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and peft's configuration of the ordinary adapter."""
    import torch

    doubled = dict(tensors)
    for name, first in start.items():
        pair, axis = ([tensors[name], first], 0) if A in name else ([tensors[name], -first], 1)
        doubled[name] = torch.cat(pair, dim=axis)
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank
    alpha = scale * math.sqrt(2 * rank) if config["use_rslora"] else 2 * alpha
    return doubled, {**config, "r": 2 * rank, "lora_alpha": alpha, "init_lora_weights": True}


def restored(saved: Mapping[str, Tensor], start: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors before `converted`.

    Raises:
        RunError: the adapter was initialised by another decomposition, so its base weights differ.
    """
    import torch

    halves = dict(saved)
    for name, first in start.items():
        axis = 0 if A in name else 1
        if name not in saved or saved[name].shape[axis] != 2 * first.shape[axis]:
            continue  # `check_names` says what is wrong
        halves[name], begun = saved[name].chunk(2, dim=axis)
        if not torch.equal(begun, first if axis == 0 else -first):
            what = "on another machine the decomposition differs in the last bits"
            raise RunError(f"{folder} was initialised with other values of {name} than this run: {what}")
    return halves
