"""Pretraining: next-token loss on every token of raw texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from ft_plugins.stages.sft.options import AccuracyOptions
from ftcore.api.components import Stage
from ftcore.errors import Problem

if TYPE_CHECKING:
    from ft_plugins.stages.sft.objective import NextToken
    from ftcore.api.plan import Plan, Run


class PretrainingOptions(AccuracyOptions):
    """How texts of a pack are separated."""

    isolate_documents: bool = True
    """Limit attention to each text of a pack; false lets a text attend to those before it in the pack."""


class Pretraining(Stage):
    """Trains on raw texts, each followed by the end-of-sequence token, in packs of ``cutoff_len`` tokens."""

    Options = PretrainingOptions
    samples: ClassVar[tuple[str, ...]] = ("Text",)
    learns_from_answers: ClassVar[bool] = False
    packs_by_default: ClassVar[bool | None] = True
    supports_streaming: ClassVar[bool] = True
    supports_label_smoothing: ClassVar[bool] = True

    def datasets(self, run: Run) -> Any:
        """Texts as tokens, all of them trained."""
        from ftcore.data.pipeline.loading import chat_datasets

        return chat_datasets(run.plan, run.tokenizer)

    def objective(self, run: Run) -> NextToken:
        """Next-token loss."""
        from ft_plugins.stages.sft.objective import NextToken
        from ftcore.training.batching.collators import collate, collate_joined

        options = run.plan.stage.options
        assert isinstance(options, PretrainingOptions)
        collator = collate if options.isolate_documents else collate_joined
        return NextToken(collator, accuracy=options.compute_accuracy)


def problems(plan: Plan) -> Iterable[Problem]:
    """``isolate_documents: false`` without packs."""
    options = plan.stage.options
    assert isinstance(options, PretrainingOptions)
    if not options.isolate_documents and plan.data.packing is False:
        hint = "remove isolate_documents, or packing"
        yield Problem("isolate_documents is false, and packing is false", plan.where("isolate_documents"), hint)
