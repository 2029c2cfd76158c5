"""Checks that an optimizer's packages and device exist, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from ftcore.api.plan import Plan
from ftcore.errors import Problem

INSTEAD = {"paged_adamw_32bit": "adamw", "paged_ademamix_32bit": "ademamix"}
"""The optimizer to use without a GPU, where it is not the name without ``paged_``."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package that an optimizer needs.

    Args:
        module: its import name.
        pip: its name for pip, where that differs.
        cpu_only: whether it is needed on the CPU only.
    """

    module: str
    pip: str = ""
    cpu_only: bool = False

    @property
    def missing(self) -> bool:
        """Whether it is not installed; nothing is imported."""
        return find_spec(self.module) is None


def problems(plan: Plan) -> Iterable[Problem]:
    """Missing packages and a missing GPU of the plan's optimizer, and states that a checkpoint cannot hold."""
    optimizer = plan.optimizer.component
    name, where = optimizer.name, plan.where("optim")
    gpu = plan.device == "cuda"
    for package in getattr(optimizer, "packages", ()):
        if package.missing and not (gpu and package.cpu_only):
            hint = f"pip install {package.pip or package.module}"
            yield Problem(f"optimizer {name} needs {package.module}, which is not installed", where, hint)
    if getattr(optimizer, "cuda_only", False) and not gpu:
        instead = INSTEAD.get(name, name.removeprefix("paged_"))
        hint = f"write optim: {instead}" if instead != name else "write another optim"
        yield Problem(f"optimizer {name} needs a GPU, and this run has none", where, hint)
    if not getattr(optimizer, "kept", True) and plan.training.do_train and not plan.training.save_only_model:
        message = f"the state of optimizer {name} holds objects that cannot be saved without pickle"
        yield Problem(message, where, "write save_only_model: true; such a run cannot be resumed")
