"""A run's context with another model, such as a reference that is loaded besides the trained one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ftcore.api.model_transform import TransformContext
from ftcore.api.plan import Plan


class ReferenceContext:
    """What transforms of a reference model use of the run.

    Args:
        run: the run's context.
        model: the reference model.
        scorer: its forward pass.
    """

    noise = None
    train_dataset = None
    eval_dataset = None

    def __init__(self, run: TransformContext, model: Any, scorer: Any) -> None:
        self._run, self.model, self.scorer = run, model, scorer

    @property
    def plan(self) -> Plan:
        """The run's plan."""
        return self._run.plan

    @property
    def args(self) -> Any:
        """The run's TrainingArguments."""
        return self._run.args

    @property
    def backend(self) -> Any:
        """The run's backend."""
        return self._run.backend

    @property
    def executor(self) -> Any:
        """The run's executor."""
        return self._run.executor

    @property
    def reports(self) -> Any:
        """The run's reports."""
        return self._run.reports

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the run's forward passes."""
        return self._run.autocast()

    def train_loader(self) -> Any:
        """The loader of the run's training rows."""
        return self._run.train_loader()
