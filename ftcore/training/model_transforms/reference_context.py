"""A run's context with another model, such as a reference that is loaded besides the trained one."""

from __future__ import annotations

from typing import Any

from ftcore.api.model_transform import TransformContext


class ReferenceContext:
    """What transforms of a reference model use of the run. The trained model's transforms are applied by then.

    Args:
        run: the run's context.
        model: the reference model.
        scorer: its forward pass.
    """

    noise = None
    train_dataset = None
    eval_dataset = None

    def __init__(self, run: TransformContext, model: Any, scorer: Any) -> None:
        self.plan, self.args, self.backend = run.plan, run.args, run.backend
        self.executor, self.reports = run.executor, run.reports
        self.autocast, self.train_loader = run.autocast, run.train_loader
        self.model, self.scorer = model, scorer
