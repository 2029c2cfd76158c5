"""Last layer pruning: after its attention, the last layer computes only tokens whose output is read.

In the last layer no other token reads the output of a token's feed-forward part and norms. Tokens without a label
(prompts, and in `rm` all but a sequence's last token) can therefore skip them. This saves three quarters of one of
smollm2-135m's 30 layers. The share is larger with `freeze` on the last two layers and a cache of the frozen ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch

from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.numerics import TOLERANCE, equivalent, evaluating, fixed_random

_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_GATE = {"gate_proj", "up_proj", "down_proj"}
_READ = torch.tensor([2, 3, 11])
"""Tokens of the probe whose outputs are compared."""


class PrunedLastLayer:
    """A decoder's last layer that returns only the tokens that are read."""

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, labelled: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """``[1, N, H]`` -> the same; with ``labelled`` ``[T]`` -> ``[1, T, H]``."""
        layer: Any = self
        if labelled is None or args or not len(labelled):  # some modules fail on zero tokens
            whole: torch.Tensor = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
            return whole if labelled is None else whole[:, labelled]
        attended, *_ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        read = (hidden_states + attended)[:, labelled]
        return cast("torch.Tensor", read + layer.mlp(layer.post_attention_layernorm(read)))


def prune_last_layer(scorer: CausalLMForward) -> None:
    """Replaces the last layer of a scorer's decoder by one that accepts ``labelled``, in place, where that is exact.

    Conditions: sequences are packed, the layer has the modules of Llama's layer and a plain gated feed-forward part,
    and its outputs for random numbers stay the same up to rounding.
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
    """The layer's output for two sequences of random numbers; None where it takes other arguments."""
    inputs = scorer.inputs(scorer.probe())
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
    """The last layer, if it has the structure of Llama's layers; else None."""
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
