"""What a run uses of its backend: kernels, their state, and what of them decides numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftcore.api.model_transform import ModelTransform


class BackendRuntime:
    """A run's use of its backend (`ftcore.api.components.Backend`). This base class is plain torch on any device.

    A backend's own runtime overrides what its device does better. One object serves one run.

    Attributes:
        name: the backend's, in messages and in keys of caches.
    """

    name = "reference"

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


REFERENCE = BackendRuntime()
"""Plain torch, for a forward pass without a run; it has no state."""
