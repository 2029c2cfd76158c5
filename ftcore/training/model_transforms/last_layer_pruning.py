"""Last layer pruning: after its attention, the last layer computes only tokens whose output is read.

In the last layer no other token reads the output of a token's feed-forward part and norms. Tokens without a label
(prompts, and in `rm` all but a sequence's last token) can therefore skip them. This saves three quarters of one of
smollm2-135m's 30 layers. The share is larger with `freeze` on the last two layers and a cache of the frozen ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from ftcore.api.model_transform import Change, ModelTransform, NotComparableError, Output, Slot, TransformContext
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.model_transforms.patching import replace_class
from ftcore.training.numerics import TOLERANCE, evaluating, fixed_random

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


class LastLayerPruning(ModelTransform):
    """Replaces the last layer of the scorer's decoder by one that accepts ``labelled``, where that is exact.

    Conditions: sequences are packed, the layer has the modules of Llama's layer and a plain gated feed-forward part,
    and its outputs for random numbers stay the same up to rounding.
    """

    name = "pruned last layer"
    summary = "the last layer computes only tokens that are read"
    slot = Slot.LAST_LAYER

    def applies(self, context: TransformContext) -> str:
        """Sequences must be packed, and the layer must be like Llama's."""
        if not context.scorer.packed:
            return "sequences are not packed"
        if _last(context.scorer) is None or not hasattr(context.scorer.inner.get_decoder(), "rotary_emb"):
            return "the last layer has other modules than Llama's"
        return ""

    def changes(self, context: TransformContext) -> Iterator[Change]:
        """The last layer."""
        yield _Pruning(context.scorer)


class _Pruning(Change):
    def __init__(self, scorer: CausalLMForward) -> None:
        self.scorer, self.layer = scorer, _last(scorer)

    def apply(self) -> None:
        self.restore = replace_class(self.layer, PrunedLastLayer)
        self.scorer.last = self.layer

    def undo(self) -> None:
        self.scorer.last = None
        self.restore()

    def outputs(self) -> Sequence[Output]:
        """The layer's output for some tokens of two sequences of random numbers."""
        scorer = self.scorer
        decoder, inputs = scorer.inner.get_decoder(), scorer.inputs(scorer.probe())
        ids = inputs.pop("input_ids")
        size = scorer.inner.config.get_text_config().hidden_size
        x = fixed_random(*ids.shape, size).to(ids.device, scorer.compute_dtype)
        if pruned := scorer.last is not None:
            inputs["labelled"] = _READ
        with evaluating(scorer.model):
            places = decoder.rotary_emb(x, inputs["position_ids"])
            made = self.layer(x, attention_mask=None, position_embeddings=places, **inputs)
        if not isinstance(made, torch.Tensor):
            raise NotComparableError("the last layer does not return one tensor")
        return [Output("the last layer", made if pruned else made[:, _READ], TOLERANCE[scorer.compute_dtype])]


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
