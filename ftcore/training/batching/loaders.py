"""The data loaders of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftcore.api.plan import Plan
from ftcore.data.pipeline.streaming import Stream
from ftcore.errors import Problem, UsageError
from ftcore.training.batching.rollouts import RolloutBuffer
from ftcore.training.batching.samplers import EpochBatches, EpochLoader
from ftcore.training.batching.streaming_loader import StreamBatches, StreamLoader
from ftcore.training.batching.token_budget import token_batches

ROWS = "rows"
"""Key of a batch's dataset rows, which are stored in the batch so that it can be split."""


class KeepRowsCollator:
    """A collator whose batches also hold their rows, so that they can be split."""

    def __init__(self, collator: Callable[[Any], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, rows: Any) -> dict[str, Any]:
        return {**self.collator(rows), ROWS: list(rows)}


class Loaders:
    """Makes the loaders of a run.

    Args:
        plan: of the run.
        args: TrainingArguments.
        info: takes a line for the user.

    Attributes:
        left_out: rows per epoch that fill no batch, as last reported.
    """

    def __init__(self, plan: Plan, args: Any, info: Callable[[str], None]) -> None:
        self.plan, self.args, self.info, self.left_out = plan, args, info, 0

    @property
    def order(self) -> int | None:
        """The seed of the order of training rows; None keeps the dataset's order."""
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return None if self.plan.data.disable_shuffling else seed

    def training(self, dataset: Any, collator: Any, buffer: RolloutBuffer | None) -> EpochLoader | StreamLoader:
        """The training loader; ``batch_sampler`` knows the rows of its batches."""
        args, order = self.args, self.order
        if buffer is not None:
            return EpochLoader(dataset, buffer.batches, collate_fn=len)
        if isinstance(dataset, Stream):
            count = args.max_steps * args.gradient_accumulation_steps
            share = (args.per_device_train_batch_size, args.process_index, args.world_size)
            return StreamLoader(
                StreamBatches(dataset, count, *share), KeepRowsCollator(collator), pin_memory=self._pins()
            )
        share = (order, args.process_index, args.world_size)
        drops = args.dataloader_drop_last
        batches = EpochBatches(len(dataset), args.per_device_train_batch_size, *share, whole=drops)
        if (tokens := self.plan.training.tokens_per_batch) is not None:
            batches = token_batches(dataset, tokens, args, order)
        self._say_left_out(batches)
        return self._loading(dataset, batches, KeepRowsCollator(collator))

    def evaluation(self, dataset: Any, collator: Any) -> EpochLoader:
        """A loader of all rows in their order."""
        args = self.args
        share = (None, args.process_index, args.world_size)
        return self._loading(dataset, EpochBatches(len(dataset), args.per_device_eval_batch_size, *share), collator)

    def _say_left_out(self, batches: EpochBatches) -> None:
        """Reports rows that fill no batch (``dataloader_drop_last``)."""
        together = batches.size * batches.processes
        if not batches.used:
            message = f"dataloader_drop_last is true, and {batches.rows} rows fill no batch of {together}"
            hint = "lower per_device_train_batch_size, or remove dataloader_drop_last"
            raise UsageError(Problem(message, self.plan.where("dataloader_drop_last"), hint))
        left, told = batches.rows - batches.used, self.left_out
        self.left_out = left
        if left and told != left and self.args.should_save:
            self.info(f"dataloader_drop_last: {left} of {batches.rows} rows are not used in each epoch")

    def _loading(self, dataset: Any, batches: EpochBatches, collator: Any) -> EpochLoader:
        return EpochLoader(
            dataset,
            batches,
            collate_fn=collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self._pins(),
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )

    def _pins(self) -> bool:
        return bool(self.args.dataloader_pin_memory and torch.cuda.is_available())
