"""Model transforms: changes of a loaded model that keep what it computes, such as faster layers. Imports no torch.

`ftcore.training.model_transforms.apply` applies those of the core, of the run's backend and of plugins
(``ft_model_transforms``), in the order of their slots. It compares the model with and without each change, and undoes a
change that alters outputs by more than rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


class Slot(IntEnum):
    """When a transform is applied. Each one is compared with the model as the slots before left it."""

    ADAPTERS = 1
    """Fused adapters, such as LoRA. First: objectives may then copy parts of the model."""
    RECOMPUTE = 2
    """Gradient checkpointing. Before all comparisons of forward passes and before compiled code, which include it."""
    CAPABILITIES = 3
    """Whether sequences can be packed and share prefixes, and whether the loss can be fused. Before layers change: the
    reference is the model's own forward. NEFTune, collator and executor depend on the result, and follow this slot."""
    LAYERS = 4
    """Fused layers. After the probe, whose result is cached for models of known classes only."""
    LAST_LAYER = 5
    """The last layer for labelled tokens only. After LAYERS, whose modules it calls; it needs packed sequences."""
    COMPILE = 6
    """Compilers. After all changes of layers, which are compiled as they are then, with the executor's threads."""
    CACHE = 7
    """Cached outputs of frozen layers. Last: all that decides these outputs is part of the key."""


class TransformContext(Protocol):
    """What a transform may use of a run; the trainer is one (`ftcore.training.context.TrainingContext`)."""

    @property
    def plan(self) -> Plan:
        """The run's plan."""

    @property
    def args(self) -> Any:
        """transformers' TrainingArguments."""

    @property
    def model(self) -> Any:
        """The loaded model with its method applied, without wrappers."""

    @property
    def scorer(self) -> Any:
        """The model's forward pass (`ftcore.training.forward.causal_lm.CausalLMForward`). Set after ADAPTERS."""

    @property
    def backend(self) -> Any:
        """The run's backend (`ftcore.training.backend.BackendRuntime`)."""

    @property
    def executor(self) -> Any:
        """``executor.run_one(job)`` computes with the threads of a micro-batch. Final after CAPABILITIES."""

    @property
    def noise(self) -> Any:
        """NEFTune's noise; None without. Set after CAPABILITIES."""

    @property
    def reports(self) -> Any:
        """``reports.info(line)`` prints a line."""

    @property
    def train_dataset(self) -> Any:
        """The training rows; None where the run only evaluates."""

    @property
    def eval_dataset(self) -> Any:
        """The evaluation rows; None for none."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the run's forward passes."""

    def train_loader(self) -> Any:
        """The loader of the training rows."""


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor by which the model with a change is compared with the model without it.

    Args:
        name: for the reason if they differ: «layer 3».
        value: the tensor; anything else, such as None, is equal to nothing.
        tolerance: of the difference, relative to the largest number; tables are in `ftcore.training.numerics`. 0 for
            equal bits.
        norm: compares Euclidean norms instead, for gradients, in which much cancels out.
    """

    name: str
    value: Any
    tolerance: float
    norm: bool = False


class NotComparableError(Exception):
    """Raised by `Change.outputs`: why the model cannot be compared. The text becomes `Change.refused`."""


class Change(ABC):
    """A part of a transform that is applied, compared and undone on its own, such as one module.

    Attributes:
        kind: a plural noun to count it by, such as ``norms``; empty if it is not counted.
        refused: why it was undone; empty while it is applied. Set before the next change is asked for.
    """

    kind: str = ""
    refused: str = ""

    @abstractmethod
    def apply(self) -> None:
        """Changes the model."""

    @abstractmethod
    def undo(self) -> None:
        """Restores the model as it was before `apply`: classes, attributes, hooks and what the process shares."""

    def outputs(self) -> Sequence[Output]:
        """What is compared, computed on the model as it is now; called before and after `apply`.

        By default nothing, for a change that is exact by itself, or that was compared on another module of its kind. An
        error after `apply` undoes the change, an error before it skips the change.
        """
        return ()


class ModelTransform(ABC):
    """A change of the loaded model that keeps what it computes.

    Attributes:
        name: unique among transforms, as a run prints it: ``fused layers``.
        summary: one line, for ``ft plan --verbose``.
        slot: when it is applied.
        for_references: whether it is also applied to other models that are loaded as a reference, whose numbers are
            compared with the trained model's.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    slot: ClassVar[Slot]
    for_references: ClassVar[bool] = False

    def planned(self, plan: Plan) -> str:
        """Why the plan alone rules it out; empty if it is expected to be applied. Does not import torch."""
        return ""

    def applies(self, context: TransformContext) -> str:
        """Why it does not apply to the loaded model; empty if `changes` is to be called.

        Raises:
            UsageError: the plan demands it, and it does not apply.
        """
        return ""

    @abstractmethod
    def changes(self, context: TransformContext) -> Iterable[Change]:
        """The changes, each of which is applied before the next one is asked for.

        A generator can therefore read `Change.refused`, to try another way or to report.
        """

    def describe(self, kept: Sequence[Change]) -> str:
        """What was applied, for the run's report: by default the name, and how many changes of each kind.

        Args:
            kept: the changes that were not undone, at least one.
        """
        counts = Counter(change.kind for change in kept if change.kind)
        return (
            f"{self.name} ({', '.join(f'{n} {kind}' for kind, n in sorted(counts.items()))})" if counts else self.name
        )
