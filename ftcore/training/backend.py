"""What a run uses of its backend: kernels, their state, and what of them decides numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ftcore.api.model_transform import ModelTransform
from ftcore.api.plan import Run
from ftcore.training.attention.kernel import AttentionKernel
from ftcore.training.losses.linear_cross_entropy import LinearCrossEntropy
from ftcore.training.step.executor import MicroBatchExecutor, SequentialExecutor

if TYPE_CHECKING:
    from ftcore.training.context import TrainingContext


class BackendRuntime:
    """A run's use of its backend (`ftcore.api.components.Backend`). This base class is plain torch on any device.

    A backend's own runtime overrides what its device does better. One object serves one run.

    Attributes:
        name: the backend's, in messages, in checkpoints and in keys of caches.
        attention: kernels in order of preference: the first one that supports a call computes it. Where none does, it
            is the core's plain one (`ftcore.training.attention.plain`).
        linear_cross_entropy: the same, for losses of the vocabulary head.
    """

    name: str = "reference"
    attention: tuple[AttentionKernel, ...] = ()
    linear_cross_entropy: tuple[LinearCrossEntropy, ...] = ()

    def prepare(self, kept: Mapping[str, Any] | None, *, locking: bool) -> None:
        """Chooses what has to be chosen before anything is computed, such as the fastest of several kernels.

        Args:
            kept: the `state_dict` of the checkpoint from which the run will resume, whose numbers it must reproduce;
                None for a new run.
            locking: whether file locks work where the cache folder is (``use_file_locking``).
        """
        if kept is not None:
            self.load_state_dict(kept)

    def state_dict(self) -> dict[str, Any]:
        """The state that a resume needs to compute the same bits, in types of JSON; stored in each checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""

    def numerics_key(self) -> list[Any]:
        """What decides bits besides sources and device, in types of JSON. It is part of the keys of caches."""
        return [self.name, self.state_dict()]

    def sources(self) -> Sequence[Path]:
        """Files and folders whose sources decide numbers, besides ``ftcore.training``: part of the keys of caches."""
        return ()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error is this backend's sign that memory ran out, besides torch's own signs."""
        return False

    def transforms(self) -> Sequence[ModelTransform]:
        """Changes of a loaded model that are faster or smaller on this device. Called once a run."""
        return ()

    @property
    def attention_cost(self) -> float:
        """Time of attention per operation, relative to a linear layer's; decides where rows are split."""
        return 2.4

    @property
    def masks_prefixes(self) -> bool:
        """Whether plain attention to a shared prefix computes the full rectangle of scores, under a mask; decides when
        a prefix is shared."""
        return True

    def executor(self, context: TrainingContext) -> MicroBatchExecutor:
        """How the micro-batches of a run run; called when the forward pass is probed and the collator made."""
        return SequentialExecutor()

    def has_fused_layers(self, module: nn.Module) -> bool:
        """Whether a module contains layers of `transforms` that are faster than compiled ones in float32."""
        return False


def backend_of(run: Run) -> BackendRuntime:
    """The runtime of a run's backend, made when first asked for."""
    if run.backend is None:
        run.backend = run.plan.backend.component.runtime(run.plan)
    found: BackendRuntime = run.backend
    return found


REFERENCE = BackendRuntime()
"""Plain torch, for a forward pass without a run; it has no state."""
