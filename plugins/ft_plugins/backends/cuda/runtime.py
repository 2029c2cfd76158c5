"""The runtime of the backend ``cuda``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ft_plugins.backends.cuda.flash_attention import FlashAttention
from ftcore.training.backend import BackendRuntime


class CudaRuntime(BackendRuntime):
    """flash-attention's kernel where it is installed; all else in plain torch."""

    name = "cuda"
    attention = (FlashAttention(),)

    def sources(self) -> Sequence[Path]:
        """This package."""
        return (Path(__file__).parent,)
