"""The optimizer and the learning rate schedule of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers import get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from ftcore.api.plan import Plan

_NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""Names of parameters without weight decay, as in transformers (trainer.py, get_decay_parameter_names)."""


def create_optimizer(plan: Plan, model: Any, args: Any) -> torch.optim.Optimizer:
    """The plan's optimizer over the trained parameters, in groups of equal learning rate and weight decay.

    Args:
        plan: of the run.
        model: whose trained parameters require gradients.
        args: TrainingArguments.
    """
    decayed = set(get_parameter_names(model, [nn.LayerNorm], list(_NO_DECAY)))
    method = plan.method
    found: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            decay = args.weight_decay if name in decayed else 0.0
            rate = method.component.learning_rate(method.options, name, tensor, args.learning_rate)
            key = (name not in decayed, rate)
            found.setdefault(key, {"params": [], "weight_decay": decay, "lr": rate})["params"].append(tensor)
    # groups with the run's learning rate first: the first group's rate is logged
    first = sorted(found, key=lambda key: (key[0], key[1] != args.learning_rate))
    optimizer = plan.optimizer.component.create_for(plan, model, [found[key] for key in first])
    # schedules with a final rate read the initial rate here, not from the groups
    optimizer.defaults["lr"] = args.learning_rate
    return optimizer


class Schedule:
    """The learning rate schedule.

    Args:
        args: TrainingArguments.
        optimizer: whose rates it sets.
        steps: optimizer steps of the run.

    Attributes:
        scheduler: torch's.
        by_metric: whether it steps after evaluations, by their metric, instead of after optimizer steps.
    """

    def __init__(self, args: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self.optimizer = optimizer
        self.scheduler: LRScheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
        self.by_metric = isinstance(self.scheduler, ReduceLROnPlateau) or args.lr_scheduler_type == "greedy"

    def rate(self) -> float:
        """The learning rate of the first parameter group."""
        if self.by_metric:
            return float(self.optimizer.param_groups[0]["lr"])
        return float(self.scheduler.get_last_lr()[0])

    def step(self) -> None:
        """After an optimizer step."""
        if not self.by_metric:
            self.scheduler.step()

    def step_by(self, metric: float) -> None:
        """After an evaluation."""
        if self.by_metric:
            self.scheduler.step(metric)
