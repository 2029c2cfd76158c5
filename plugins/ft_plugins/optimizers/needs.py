"""What an optimizer needs that is not there, said before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from ftcore.api.plan import Plan
from ftcore.errors import Problem
from ftcore.resources import hardware

INSTEAD = {"paged_adamw_32bit": "adamw", "paged_ademamix_32bit": "ademamix"}
"""What does the same without a GPU, where it is not the name without ``paged_``."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package that brings an optimizer along.

    Args:
        module: what is imported.
        pip: what pip installs, where it is called otherwise.
        cpu_only: whether a GPU can do without it.
    """

    module: str
    pip: str = ""
    cpu_only: bool = False

    @property
    def missing(self) -> bool:
        """Whether it is not installed; nothing is imported."""
        return find_spec(self.module) is None


def problems(plan: Plan) -> Iterable[Problem]:
    """Of the plan's optimizer: packages that are missing, and a device that it cannot do without."""
    optimizer = plan.optimizer.component
    name, where = optimizer.name, plan.where("optim")
    gpu = hardware.machine(plan.on_cpu).cuda is not None
    for package in getattr(optimizer, "packages", ()):
        if package.missing and not (gpu and package.cpu_only):
            hint = f"pip install {package.pip or package.module}"
            yield Problem(f"optimizer {name} needs {package.module}, which is not installed", where, hint)
    if getattr(optimizer, "cuda_only", False) and not gpu:
        instead = INSTEAD.get(name, name.removeprefix("paged_"))
        hint = f"write optim: {instead}" if instead != name else "write another optim"
        yield Problem(f"optimizer {name} works on a GPU alone, and here is none", where, hint)
    if not getattr(optimizer, "kept", True) and plan.training.do_train and not plan.training.save_only_model:
        message = f"the state of optimizer {name} holds objects, which a checkpoint cannot keep without pickle"
        yield Problem(message, where, "write save_only_model: true; such a run cannot be gone on with")
