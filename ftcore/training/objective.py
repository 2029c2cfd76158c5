"""What a stage trains on: the loss of a micro-batch, its weight, metrics, and the state that a resume needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ftcore.training.backend import BackendRuntime
from ftcore.training.batching.collators import Batch, collate
from ftcore.training.forward.causal_lm import CausalLMForward

if TYPE_CHECKING:
    from ftcore.training.context import TrainingContext
    from ftcore.training.reference.logprob_cache import ReferenceMetric

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """When an objective makes new rows during training, such as sampled responses.

    Args:
        batches: optimizer batches that a rollout fills.
        epochs: training epochs over a rollout; its next optimizer steps number ``batches * epochs``.
    """

    batches: int
    epochs: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps on one rollout."""
        return self.batches * self.epochs


class Objective(ABC):
    """The loss of a stage. The trainer gives it batches, and takes sums of losses and their weights.

    A step trains on ``loss_sum`` of all its rows divided by ``weight`` of all its rows, over all micro-batches and
    processes. Packing, accumulation, micro-batches, shared prefixes, evaluation, checkpoints, logs and callbacks are
    the trainer's. Whether the sum over a batch is the sum over its parts says `ftcore.api.plan.Stage.loss_is_additive`.

    Attributes:
        context: the trainer, from `bind` on.
        rollouts: when rows are made during training (`make_rows`); None for a stage that trains on its dataset's rows.
        reference_metric: values that each row gets from a reference model as ``reference``; None for none.
        load_reference: loads the reference model; None for the model as it is before training.
        reads_images: whether batches hold images.
    """

    context: TrainingContext
    rollouts: Rollouts | None = None
    reference_metric: ReferenceMetric | None = None
    load_reference: Callable[[], Any] | None = None
    reads_images = False

    # ---- set-up ----

    def before_transforms(self, model: Any) -> None:  # noqa: B027 (optional)
        """Called with the model as the method left it, but with fused adapters. Later its layers are recomputed,
        and replaced by faster ones."""

    def bind(self, context: TrainingContext) -> None:
        """Called when the trainer is complete, before reference values are computed and a checkpoint is loaded."""
        self.context = context

    def forward_of(self, model: Any, backend: BackendRuntime) -> Any:
        """The forward pass of a model; of the trained one, and of a reference."""
        return CausalLMForward(model, backend)

    def datasets(self, train: Any, evaluation: Any) -> tuple[Any, Any]:
        """The rows to train and to evaluate on, before they get reference values; either may be None."""
        return train, evaluation

    def collate(self, rows: Rows) -> Batch:
        """Rows as a batch."""
        return collate(rows)

    # ---- the loss ----

    @property
    def scorer(self) -> Any:
        """The forward pass of the trained model."""
        return self.context.scorer

    @abstractmethod
    def loss_sum(self, batch: Batch) -> torch.Tensor:
        """Weighted sum of the losses of a micro-batch, a scalar with a gradient."""

    def eval_loss_sum(self, batch: Batch) -> torch.Tensor:
        """The same in an evaluation, where further metrics may be logged; without a gradient."""
        return self.loss_sum(batch)

    def weight(self, batch: Batch) -> float:
        """The total weight of the terms of `loss_sum`; by default that of the labels."""
        return float(batch["weights"].sum(dtype=torch.float64))

    def begin_step(self, batches: Iterable[Batch]) -> None:  # noqa: B027 (optional)
        """Called before an optimizer step with its micro-batches on the device.

        Estimates are computed within ``context.estimating()``.
        """

    # ---- metrics ----

    def log_metric(self, name: str, values: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Adds values ``[n]`` of this batch to a metric that is logged as a mean; ``weights`` are ``[n]``, or None."""
        self.context.metrics.add(name, values, weights)

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """Further values to log, computed from the means of the metrics."""
        return {}

    # ---- evaluation ----

    def begin_evaluation(self, batches: Iterable[Batch]) -> None:  # noqa: B027 (optional)
        """Called before an evaluation with its batches on the device; see `begin_step`."""

    def end_evaluation(self) -> None:  # noqa: B027 (optional)
        """Called after an evaluation."""

    def eval_loss(self, dataset: Any) -> float | None:
        """The loss of a whole set; None for the weighted mean of `eval_loss_sum`."""
        return None

    # ---- rows made during training ----

    def make_rows(self, dataset: Any, numbers: Sequence[int], rollout: int) -> list[dict[str, Any]]:
        """The rows of a rollout, the same in all processes; see `rollouts`.

        Args:
            dataset: the training rows, such as prompts.
            numbers: of its rows.
            rollout: number of the rollout, from the run's start.
        """
        raise NotImplementedError(f"{type(self).__name__} sets rollouts and has no make_rows")

    # ---- checkpoints ----

    def state(self) -> dict[str, Any]:
        """State that a resume needs besides weights and optimizer; empty for none. Types:
        `ftcore.training.checkpointing.safe_serialization`."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (optional)
        """Restores what `state` returned, before the first step."""

    def save(self, folder: Path) -> None:  # noqa: B027 (optional)
        """Writes trained weights of its own, beside those that the method saves."""

    def load(self, folder: Path) -> None:  # noqa: B027 (optional)
        """Loads what `save` wrote."""
