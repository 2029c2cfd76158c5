"""The last layer: behind its attention only tokens that are read go on.

What a token's feed-forward part, its norms and the decoder's last norm make of it no other token sees in the last
layer, so that tokens without a label (prompts, and all but a sequence's last one in `rm`) need not go through them. Of
smollm2-135m's 30 layers that is three quarters of one; with `freeze` on the last two, of which alone an epoch consists
once the rest is kept, it is more.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch

from ftcore.training.forward.causal_lm import CausalLMForward, flat_inputs
from ftcore.training.numerics import TOLERANCE, equivalent, evaluating, fixed_random

_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_GATE = {"gate_proj", "up_proj", "down_proj"}
_READ = torch.tensor([2, 3, 11])
"""Tokens of the probe that are read when it is tried."""


class PrunedLastLayer:
    """A decoder's last layer, which gives those tokens alone that it is told are read."""

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, labelled: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """``[1, N, H]`` -> the same; with ``labelled`` ``[T]`` -> ``[1, T, H]``."""
        layer: Any = self
        if labelled is None or args or not len(labelled):  # of no token at all some parts make no shape
            whole: torch.Tensor = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
            return whole if labelled is None else whole[:, labelled]
        attended, *_ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        read = (hidden_states + attended)[:, labelled]
        return cast("torch.Tensor", read + layer.mlp(layer.post_attention_layernorm(read)))


def prune_last_layer(scorer: CausalLMForward) -> None:
    """Turns the last layer of a scorer's decoder into one that knows ``labelled``, in place, where that is exact.

    It is where sequences go end to end, the layer has the parts of Llama's and a plain gated feed-forward part, and it
    makes of random numbers what it made before, to rounding.
    """
    decoder = scorer.inner.get_decoder()
    layer = _last(scorer)
    if not scorer.packed or layer is None or not hasattr(decoder, "rotary_emb"):
        return
    own: Any = type(layer)
    with evaluating(scorer.model):
        expected = _made(layer, decoder, scorer)
        layer.__class__ = _turned(own)
        found = _made(layer, decoder, scorer, labelled=_READ)
    if expected is None or not equivalent(found, expected[:, _READ], TOLERANCE[scorer.compute_dtype]):
        layer.__class__ = own
    else:
        scorer.last = layer


def _made(layer: Any, decoder: Any, scorer: CausalLMForward, **asked: Any) -> torch.Tensor | None:
    """What the layer makes of two sequences of random numbers; None where it is called in another way."""
    inputs = flat_inputs(scorer.probe())
    ids = inputs.pop("input_ids")
    size = scorer.inner.config.get_text_config().hidden_size
    x = fixed_random(*ids.shape, size).to(ids.device, scorer.compute_dtype)
    try:
        places = decoder.rotary_emb(x, inputs["position_ids"])
        made = layer(x, attention_mask=None, position_embeddings=places, past_key_values=None, **inputs, **asked)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return None
    return made if isinstance(made, torch.Tensor) else None


def _last(scorer: CausalLMForward) -> Any:
    """The top of the stack, where it is made as Llama's layers are; else None."""
    layers = scorer.layers()
    if layers is None:
        return None
    layer: Any = layers[-1]
    parts = dict(layer.named_children())
    ordinary = parts.keys() == _PARTS and {name for name, _ in parts["mlp"].named_children()} - {"act_fn"} == _GATE
    hooked = "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks
    return layer if ordinary and not hooked else None


@cache
def _turned(kind: Any) -> Any:
    return type(f"Last{kind.__name__}", (PrunedLastLayer, kind), {"__module__": kind.__module__})
