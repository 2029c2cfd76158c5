"""Learning rate schedules under transformers' names, with their arguments; transformers is not imported."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ftcore.api.plan import Plan
from ftcore.errors import Problem


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule.

    Args:
        takes: accepted keys of ``lr_scheduler_kwargs``.
        needs: keys of which at least one is required.
        evaluates: whether it depends on an evaluation metric.
    """

    takes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    evaluates: bool = False


_PLATEAU = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps")
_MINIMUM = ("min_lr", "min_lr_rate")

SCHEDULES: Mapping[str, Schedule] = {
    "linear": Schedule(),
    "cosine": Schedule(("num_cycles",)),
    "cosine_with_restarts": Schedule(("num_cycles",)),
    "polynomial": Schedule(("lr_end", "power")),
    "constant": Schedule(),
    "constant_with_warmup": Schedule(),
    "inverse_sqrt": Schedule(("timescale",)),
    "reduce_lr_on_plateau": Schedule(_PLATEAU, evaluates=True),
    "cosine_with_min_lr": Schedule(("num_cycles", *_MINIMUM), needs=_MINIMUM),
    "cosine_warmup_with_min_lr": Schedule(("num_cycles", *_MINIMUM, "warmup_lr_rate"), needs=_MINIMUM),
    "warmup_stable_decay": Schedule(
        ("num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"),
        needs=("num_decay_steps",),
    ),
    "greedy": Schedule(
        (*_PLATEAU, "warmup", "max_lr", "verbose", "smooth", "window_size", "reset_start"), evaluates=True
    ),
}
"""Name -> its arguments. A test keeps it equal to the installed transformers."""


def arguments(plan: Plan) -> Mapping[str, Any] | None:
    """``lr_scheduler_kwargs`` as a mapping; None if it is not a JSON object."""
    given = plan.transformers.get("lr_scheduler_kwargs") or {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    return given if isinstance(given, Mapping) else None


def problems(plan: Plan) -> Iterable[Problem]:
    """What is wrong with the plan's schedule."""
    name, option = plan.training.lr_scheduler_type, "lr_scheduler_kwargs"
    schedule = SCHEDULES.get(name)
    if schedule is None:
        hint = f"write one of {', '.join(SCHEDULES)}"
        yield Problem(f"there is no lr_scheduler_type {name!r}", plan.where("lr_scheduler_type"), hint)
        return
    given = arguments(plan)
    if given is None:
        yield Problem(f"{option} is not a mapping of names to values", plan.where(option))
        return
    if unknown := [key for key in given if key not in schedule.takes]:
        takes = f"it takes {', '.join(schedule.takes)}" if schedule.takes else "it takes no arguments"
        yield Problem(f"{option}: schedule {name} does not take {', '.join(unknown)}", plan.where(option), takes)
    if schedule.needs and not any(key in given for key in schedule.needs):
        needs = " or ".join(schedule.needs)
        hint = f"write {option}: {{{schedule.needs[0]}: ...}}"
        yield Problem(f"schedule {name} needs {needs} in {option}", plan.where("lr_scheduler_type"), hint)
    if schedule.evaluates and plan.training.eval_strategy == "no" and plan.training.do_train:
        message = f"schedule {name} depends on an evaluation metric, and there are no evaluations during training"
        yield Problem(message, plan.where("lr_scheduler_type"), "write eval_strategy: steps or epoch")
