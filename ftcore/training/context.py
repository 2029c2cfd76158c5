"""What the parts of the training engine use of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from ftcore.api.plan import Plan

T = TypeVar("T")
U = TypeVar("U")


class TrainingContext(Protocol):
    """The trainer of a run; `ftcore.training.trainer.Trainer` implements it.

    Attributes:
        plan: the run's plan.
        backend: its backend's runtime; see `ftcore.training.backend`.
        model: the trained model, without wrappers.
        args: TrainingArguments.
        strategy: how the run is divided among processes; see `ftcore.training.parallel.strategy`.
        executor: how micro-batches run; see `ftcore.training.step.executor`.
        objective: the stage's; see `ftcore.training.objective`.
        scorer: the model's forward pass; see `ftcore.training.forward.causal_lm`.
        state: transformers' TrainerState.
        optimizer: None until the first step.
        noise: NEFTune's noise; None without.
        metrics: takes the metrics of micro-batches.
        running_loss: the loss since the last log line.
        reports: prints lines and progress.
        cost_model: the cost of a micro-batch by its rows; see `ftcore.training.cost_model.tokens`.
        runs_concurrently: whether the micro-batches of a step run at a time.
        pass_tokens: most tokens of a micro-batch; None for whole batches.
        loss_is_additive: whether the loss of a micro-batch is the sum of its parts' losses.
        data_collator: makes batches of rows.
        train_dataset: None where the run only evaluates.
        eval_dataset: None for none.
    """

    plan: Plan
    backend: Any
    model: Any
    args: Any
    strategy: Any
    executor: Any
    objective: Any
    scorer: Any
    state: Any
    optimizer: Any
    noise: Any
    metrics: Any
    running_loss: Any
    reports: Any
    data_collator: Any
    train_dataset: Any
    eval_dataset: Any

    @property
    def cost_model(self) -> Any: ...

    @property
    def runs_concurrently(self) -> bool: ...

    @property
    def loss_is_additive(self) -> bool: ...

    @property
    def pass_tokens(self) -> int | None: ...

    def estimating(self) -> AbstractContextManager[None]:
        """The model in evaluation mode, without gradients."""

    def learning_rate(self) -> float:
        """The learning rate of the next step."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of forward passes."""

    def on_device(self, batch: Any) -> Any:
        """The batch with its tensors on the device of this process."""

    def each(self, job: Callable[[T], U], parts: Iterable[T]) -> Iterator[U]:
        """The results of a job for each part, in order; several at a time where the executor does that."""

    def interruptible(self, parts: Iterable[T]) -> Iterator[T]:
        """The parts of an evaluation; a signal stops the run between them."""

    def sharing_collator(self, scorer: Any, strict: bool = True) -> Any:
        """The run's collator with shared prefixes, as ``share_prompt`` says."""

    def train_loader(self) -> Any:
        """The loader of the training rows."""


class CheckpointedTrainer(TrainingContext, Protocol):
    """What checkpoints hold besides.

    Attributes:
        tokenizer: saved with the weights.
        callback_handler, control: of transformers.
        phase: records the run's phase.
        evaluating: whether an evaluation is running; a resume from a checkpoint of that moment evaluates first.
        position: epoch and steps of it from which a resume goes on, after an epoch that ended early; else None.
        streamed: the batches of a stream; None for other data.
        rollouts: the rows made during training; None for other objectives.
        schedule: the learning rate schedule; None before training.
        guard: of the steps.
    """

    tokenizer: Any
    callback_handler: Any
    control: Any
    phase: Callable[[str], AbstractContextManager[Any]]
    evaluating: bool
    position: tuple[int, int] | None
    streamed: Any
    rollouts: Any
    schedule: Any
    guard: Any


class EvaluatedTrainer(CheckpointedTrainer, Protocol):
    """What evaluations use besides.

    Attributes:
        loaders: makes loaders; see `ftcore.training.batching.loaders`.
        memory: transformers' TrainerMemoryTracker.
    """

    loaders: Any
    memory: Any

    def event(self, name: str, *given: Any) -> None:
        """Tells the callbacks of an event."""

    def evaluate(self) -> dict[str, float]:
        """Evaluates the run's evaluation data."""

    def show_averages(self) -> None:
        """Switches schedule-free optimizers to the averaged weights."""

    def means(self, metrics: Any) -> dict[str, float]:
        """Means of the metrics of all processes, and what the objective derives from them."""

    def log(self, logs: dict[str, float], began: float | None = None) -> None:
        """Logs a line."""


class LoopedTrainer(EvaluatedTrainer, Protocol):
    """What the loop uses besides.

    Attributes:
        checkpointer, evaluator: of the run.
        flops: floating point operations of this process since the state was told of them.
        tokens_before: tokens that had been read when the process began to train.
    """

    checkpointer: Any
    evaluator: Any
    flops: float
    tokens_before: int

    def store_flops(self) -> None:
        """Adds the operations since the last call to the state."""

    def save_checkpoint(self) -> None:
        """Writes a checkpoint of the current step."""

    def stop_if_asked(self) -> None:
        """Writes a checkpoint and ends the run if any process has received a signal."""
