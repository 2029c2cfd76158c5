"""The CPU's traits for planning, and the sizes that planning and kernels share. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ftcore.resources import device_traits
from ftcore.resources.device_traits import DeviceTraits
from ftcore.resources.hardware import NUM_WORKERS

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

PASS_TOKENS = 2048
"""Most tokens of a forward pass, unless the file says otherwise."""
TILE = (1536, 1024)
"""Positions and tokens of a tile: 6 MB of float32 logits. Relative CPU time with and without the gradient: half as many
positions 1.02 and 1.06, 512 positions by 4,096 tokens 1.03 and 1.08, 256 by 4,096 1.10 and 1.18."""
FUSED = frozenset({"float32", "bfloat16"})
"""Compute dtypes of the fused layers."""


def traits(plan: Plan) -> DeviceTraits:
    """A run's traits. Micro-batches run one at a time if their results would depend on the timing of threads."""
    method = plan.method.component
    noise = plan.transformers.get("neftune_noise_alpha") or method.drops_inputs(method.effective(plan))
    return replace(
        device_traits.plain("cpu"),
        pass_tokens=PASS_TOKENS,
        workers=1 if plan.training.tokens_per_pass is False or noise else NUM_WORKERS,
        fused_dtypes=FUSED,
        head_tile=TILE,
    )
