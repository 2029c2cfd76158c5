"""Supervised fine-tuning: next-token loss on the assistants' turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ftcore.components import Stage

if TYPE_CHECKING:
    from ftcore.engine.trainer import FtTrainer
    from ftcore.run import Run


class SupervisedFineTuning(Stage):
    """Learns what assistants say in conversations."""

    samples: ClassVar[tuple[str, ...]] = ("Chat",)
    packs: ClassVar[bool | None] = False
    streams: ClassVar[bool] = True

    def datasets(self, run: Run) -> Any:
        """Conversations tokenised, with a weight for each token."""
        from ftcore.data.loading import chat_datasets

        return chat_datasets(run.plan, run.tokenizer)

    def trainer(self, run: Run) -> FtTrainer:
        """The shared trainer as it is."""
        from ftcore.engine.trainer import FtTrainer

        return FtTrainer(run, train=run.data.train, evaluation=run.data.eval)
