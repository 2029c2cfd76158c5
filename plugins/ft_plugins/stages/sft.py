"""Supervised fine-tuning: next-token loss on the assistants' turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ftcore.components import OptionGroup, Stage

if TYPE_CHECKING:
    from ftcore.engine.trainer import FtTrainer
    from ftcore.run import Run


class AccuracyOptions(OptionGroup):
    """What is evaluated besides the loss."""

    compute_accuracy: bool = False
    """Whether evaluations count the labels that are the likeliest token: ``eval_accuracy``."""


def token_trainer(run: Run, **more: Any) -> FtTrainer:
    """The shared trainer, counting hits where the stage's options say so."""
    from ftcore.engine.accuracy import AccuracyTrainer
    from ftcore.engine.trainer import FtTrainer

    options = run.plan.stage.options
    assert isinstance(options, AccuracyOptions)
    kind = AccuracyTrainer if options.compute_accuracy else FtTrainer
    return kind(run, train=run.data.train, evaluation=run.data.eval, **more)


class SupervisedFineTuning(Stage):
    """Learns what assistants say in conversations."""

    Options = AccuracyOptions
    samples: ClassVar[tuple[str, ...]] = ("Chat",)
    packs: ClassVar[bool | None] = False
    streams: ClassVar[bool] = True

    def datasets(self, run: Run) -> Any:
        """Conversations tokenised, with a weight for each token."""
        from ftcore.data.loading import chat_datasets

        return chat_datasets(run.plan, run.tokenizer)

    def trainer(self, run: Run) -> FtTrainer:
        """The shared trainer."""
        return token_trainer(run)
