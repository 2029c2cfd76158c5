"""The attributes of the trainer that parts of the training engine use."""

from __future__ import annotations

from typing import Any, Protocol

from ftcore.api.plan import Plan


class TrainingContext(Protocol):
    """The trainer of a run; `ftcore.training.trainer.FtTrainer` implements it.

    Attributes:
        plan: the run's plan.
        backend: its backend's runtime; see `ftcore.training.backend`.
        model: the trained model, without wrappers.
        args: TrainingArguments.
        accelerator: accelerate's Accelerator.
        state: transformers' TrainerState.
        optimizer: None until the first step.
        scorer: the model's forward pass; see `ftcore.training.forward.causal_lm`.
        noise: NEFTune's noise; None without.
        meters: metrics logged since the last log line.
        reports: prints lines and progress.
        cost_model: the cost of a micro-batch by its rows; see `ftcore.training.cost_model.tokens`.
        pool: the CPU thread pool; None where work is sequential.
        runs_concurrently: whether the micro-batches of a step run two at a time.
        loss_is_additive: whether the loss of a micro-batch is the sum of its parts' losses.
        data_collator: makes batches of rows.
        train_dataset: None where the run only evaluates.
        eval_dataset: None for none.
    """

    plan: Plan
    backend: Any
    model: Any
    args: Any
    accelerator: Any
    state: Any
    optimizer: Any
    scorer: Any
    noise: Any
    meters: Any
    reports: Any
    pool: Any
    loss_is_additive: bool
    data_collator: Any
    train_dataset: Any
    eval_dataset: Any
    callback_handler: Any
    is_deepspeed_enabled: bool
    # transformers' attributes, which the guard corrects when it skips a step
    _tr_loss: Any
    _initial_global_step: int

    @property
    def cost_model(self) -> Any: ...

    @property
    def runs_concurrently(self) -> bool: ...

    def _get_learning_rate(self) -> Any: ...

    def get_train_dataloader(self) -> Any: ...
