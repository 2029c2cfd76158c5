"""Evaluations: the mean loss of a set, its metrics, and whether it is the best so far."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import SaveStrategy, speed_metrics

from ftcore.errors import RunError
from ftcore.training.batching.collators import Batch
from ftcore.training.batching.samplers import EpochLoader

if TYPE_CHECKING:
    from ftcore.training.context import EvaluatedTrainer


class Evaluator:
    """Evaluates a trainer's model.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: EvaluatedTrainer) -> None:
        self.trainer = trainer

    def evaluate(self, rows: Any, prefix: str = "eval") -> dict[str, float]:
        """``eval_loss``, the means of the metrics that it logs, and its speed; of each set, where there are several.

        Args:
            rows: a dataset, or name -> dataset.
            prefix: of the names of the metrics.

        Raises:
            RunError: there are no rows, or no token has a label.
        """
        if isinstance(rows, dict):
            every: dict[str, float] = {}
            for name, some in rows.items():
                every |= self.evaluate(some, f"{prefix}_{name}")
            return every
        trainer, objective = self.trainer, self.trainer.objective
        if rows is None:
            raise RunError("there is no data to evaluate: write eval_dataset, or val_size")
        trainer.memory.start()  # nothing within a training, whose memory is measured
        began = time.time()
        loader = trainer.loaders.evaluation(rows, trainer.data_collator)
        trainer.callback_handler.eval_dataloader = loader
        trainer.model.eval()
        trainer.show_averages()
        objective.begin_evaluation(self._batches(loader))
        with trainer.metrics.evaluation() as measured, trainer.phase("evaluating"):
            own = objective.eval_loss(rows)
            loss = self._mean_loss(loader) if own is None else own
        objective.end_evaluation()
        metrics = {f"{prefix}_{name}": value for name, value in {"loss": loss, **trainer.means(measured)}.items()}
        size = trainer.args.per_device_eval_batch_size * trainer.strategy.world_size
        metrics |= speed_metrics(prefix, began, num_samples=len(rows), num_steps=math.ceil(len(rows) / size))
        trainer.log(metrics)
        trainer.event("on_evaluate", metrics)
        trainer.memory.stop_and_update_metrics(metrics)  # which goes by the name of this function
        return metrics

    def _mean_loss(self, loader: EpochLoader) -> float:
        """Weighted mean of the losses over all labels of the set."""
        trainer = self.trainer
        sums = torch.zeros(2, dtype=torch.float64, device=trainer.strategy.device)
        with torch.no_grad(), trainer.autocast():
            for loss, weight in trainer.each(self._evaluated, self._batches(loader)):
                sums += torch.stack([loss, torch.tensor(weight).to(sums)])
        total, weight = trainer.strategy.sum(sums).tolist()
        if not weight:
            raise RunError("no token of the evaluation data has a label, so it has no loss")
        return float(total / weight)

    def _evaluated(self, batch: Batch) -> tuple[torch.Tensor, float]:
        objective = self.trainer.objective
        return objective.eval_loss_sum(batch).double(), objective.weight(batch)

    def _batches(self, loader: EpochLoader) -> Iterator[Batch]:
        """The loader's batches on the device; a signal stops the run between them."""
        for batch in self.trainer.interruptible(loader):
            yield self.trainer.on_device(batch)

    # ---- the best ----

    def evaluate_in_training(self) -> bool:
        """An evaluation whose metric a schedule may follow; returns whether it is the best so far.

        Raises:
            RunError: the evaluation does not have ``metric_for_best_model``.
        """
        trainer = self.trainer
        metrics = trainer.evaluate()
        if trainer.schedule is not None and trainer.schedule.by_metric:
            trainer.schedule.step_by(metrics[self._best_metric(metrics)])
        if trainer.args.metric_for_best_model is None:
            return False
        value, state = metrics[self._best_metric(metrics)], trainer.state
        sign = 1 if trainer.args.greater_is_better else -1
        if state.best_metric is None:
            state.best_metric = -sign * math.inf
        if not sign * value > sign * state.best_metric:
            return False
        state.best_metric = value
        if trainer.args.save_strategy != SaveStrategy.NO:
            state.best_global_step = state.global_step
        return True

    def _best_metric(self, metrics: Mapping[str, float]) -> str:
        """The key of ``metric_for_best_model``."""
        wanted = str(self.trainer.args.metric_for_best_model)
        name = f"eval_{wanted.removeprefix('eval_')}"
        if name not in metrics:
            there = ", ".join(name.removeprefix("eval_") for name in metrics if name.startswith("eval_"))
            raise RunError(f"metric_for_best_model: the evaluation has no {wanted!r}; it has {there}")
        return name
