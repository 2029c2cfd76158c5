"""What the parts of the engine may ask of the trainer that they work for."""

from __future__ import annotations

from typing import Any, Protocol

from ftcore.api.plan import Plan


class TrainingContext(Protocol):
    """A run's trainer as its parts see it; `ftcore.training.trainer.FtTrainer` is it.

    Attributes:
        plan: the run's plan.
        model: the model that is trained, without wrappers.
        args: TrainingArguments.
        accelerator: accelerate's.
        state: transformers' TrainerState.
        optimizer: None until the first step.
        scorer: computes the model's outputs.
        noise: NEFTune's; None without.
        meters: what was noted since the last log line.
        reports: prints lines and progress.
        work: the cost of a micro-batch by its rows; see `ftcore.training.cost_model.tokens`.
        crew: threads that work side by side; None where one does all of it.
        side_by_side: whether micro-batches of a step are computed two at a time.
        loss_is_additive: whether the loss of a micro-batch is the sum of those of its parts.
        data_collator: makes batches of rows.
        train_dataset: None where the run only evaluates.
        eval_dataset: None for none.
    """

    plan: Plan
    model: Any
    args: Any
    accelerator: Any
    state: Any
    optimizer: Any
    scorer: Any
    noise: Any
    meters: Any
    reports: Any
    crew: Any
    loss_is_additive: bool
    data_collator: Any
    train_dataset: Any
    eval_dataset: Any
    callback_handler: Any
    is_deepspeed_enabled: bool
    # transformers' own, which the guard puts right where it leaves a step out
    _tr_loss: Any
    _initial_global_step: int

    @property
    def work(self) -> Any: ...

    @property
    def side_by_side(self) -> bool: ...

    def _get_learning_rate(self) -> Any: ...

    def get_train_dataloader(self) -> Any: ...
