"""What planning and training need to know of a device. A run's backend states it (`ftcore.api.plan.Backend.traits`)."""

from __future__ import annotations

from dataclasses import dataclass

from ftcore.resources import hardware

CHUNK_BYTES = 64 << 20
"""Bytes of the float32 logits of one chunk of positions: 340 of them with a vocabulary of 49,152 tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTraits:
    """The traits of a run's device as its backend uses it.

    Args:
        name: the device in messages, such as ``this CPU``.
        memory: bytes of memory for the model.
        fast_dtypes: ``float32`` and what else is computed without emulation: ``bfloat16``, ``float16``, ``tf32``.
        heap: whether tensors are on the heap of the process, whose holes take memory too.
        pass_tokens: most tokens of a forward pass with ``tokens_per_pass: auto``; None for whole batches.
        workers: micro-batches of a step that run at a time, as far as options decide, each on one thread at least.
        trained_share: largest share of the parameters that may be trained for that: each worker has gradients too.
        fused_dtypes: compute dtypes in which norms and SwiGLU are fused, which saves less for the backward pass.
        head_tile: positions and tokens of one tile of a frozen head's logits in float32; None if a chunk has the whole
            vocabulary.
        chunk_bytes: bytes of the float32 logits of one chunk of positions.
    """

    name: str
    memory: int
    fast_dtypes: frozenset[str] = frozenset({"float32"})
    heap: bool = False
    pass_tokens: int | None = None
    workers: int = 1
    trained_share: float = 0.25
    fused_dtypes: frozenset[str] = frozenset()
    head_tile: tuple[int, int] | None = None
    chunk_bytes: int = CHUNK_BYTES

    def concurrent(self, *, threads: int, trained: float, parameters: float) -> int:
        """Micro-batches of a step that run at a time.

        Args:
            threads: that the process computes with.
            trained: number of trained parameters.
            parameters: number of all parameters.
        """
        fits = threads >= self.workers and trained <= self.trained_share * parameters
        return self.workers if fits else 1


def plain(device: str) -> DeviceTraits:
    """The traits of plain torch on a type of device, as far as ft detects it; of others only float32 is known."""
    machine = hardware.machine(device != "cuda")
    fast = {"float32"}
    if device in ("cpu", "cuda"):
        fast |= {"bfloat16"} if machine.bf16 else set()
        fast |= {"float16"} if machine.cuda else set()
        fast |= {"tf32"} if machine.cuda and machine.cuda >= (8, 0) else set()
    name = machine.name if device in ("cpu", "cuda") else f"device {device}"
    return DeviceTraits(name=name, memory=machine.memory, fast_dtypes=frozenset(fast), heap=device == "cpu")
