"""What a model's forward pass can do: packed sequences, shared prefixes and the fused loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ftcore.api.model_transform import Change, ModelTransform, Slot, TransformContext
from ftcore.training.model_transforms.capability_cache import capabilities_of, probe_capabilities


class Capabilities(ModelTransform):
    """Sets the scorer's capabilities, with the model's own forward pass as the reference.

    The comparison is the probe's own, since several combinations are tried
    (`ftcore.training.forward.causal_lm.CausalLMForward.probe_capabilities`); its result is cached.
    """

    name = "packed attention"
    summary = "sequences are packed without padding, share prefixes, and the loss needs no full logits"
    slot = Slot.CAPABILITIES
    for_references = True

    def changes(self, context: TransformContext) -> Iterator[Change]:
        """The scorer's."""
        yield _Probed(context)

    def describe(self, kept: Sequence[Change]) -> str:
        """The capabilities that were found."""
        (probed,) = kept
        assert isinstance(probed, _Probed)
        scorer = probed.context.scorer
        names = {"packed": "packed attention", "shares": "shared prefixes", "fused": "fused loss"}
        return ", ".join(text for name, text in names.items() if getattr(scorer, name, False))


def comparison_context(context: TransformContext, scorer: Any) -> AbstractContextManager[Any]:
    """The context in which two ways of computing a scorer's model are compared."""
    # mixed dtypes need autocast; all-float32 models are compared without it, as it would round
    return context.autocast() if scorer.compute_dtype.itemsize < 4 else nullcontext()


class _Probed(Change):
    def __init__(self, context: TransformContext) -> None:
        self.context = context

    def apply(self) -> None:
        scorer = self.context.scorer
        self.attention = scorer.inner.config._attn_implementation
        self.before = capabilities_of(scorer)
        with comparison_context(self.context, scorer):
            probe_capabilities(scorer)

    def undo(self) -> None:
        scorer = self.context.scorer
        vars(scorer).update(self.before)
        scorer.inner.set_attn_implementation(self.attention)
