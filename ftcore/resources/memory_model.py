"""The memory estimate of a training run, from config.json and the plan, without torch and without the model.

Bytes that autograd saves per decoder layer and token, measured on torch 2.13's saved tensors
(tests/resources/test_memory_model.py repeats it). ``h`` is the hidden size, ``i`` the intermediate size, ``q`` and
``k`` are the widths of all query and of all key heads, ``b`` the bytes of the compute dtype:

==================================  ======================================================================
inputs of the norms                 ``norms * h * 4`` (they compute in float32), and as much again where the
                                    norms' weights are trained; ``q + k`` likewise where these are normed
attention (fused, per sequence)     ``(2q + 2k) * b`` queries, keys, values, output; ``4 * heads`` logsumexp
what SwiGLU multiplies              ``3i * b`` gate, its activation, up
inputs of the linear layers         ``(2h + q + i) * b``; adapters in half precision keep a copy of their own
                                    for each of q, k, v and gate, up: ``(5h + q + i) * b``
adapters of rank r                  ``r * linear layers * b``; with dropout also mask and dropped input of
                                    each layer, ``2 * (5h + q + i) * b`` in place of the shared inputs; where
                                    a layer's and its adapter's results are scaled, these: their sizes ``* b``
experts, ``a`` of them per token    ``a * (h + 3i) * b`` in place of SwiGLU's, and ``a * (h + i) * b`` where trained
==================================  ======================================================================

Fused layers (`DeviceTraits.fused_dtypes`) save less; they apply if trained parameters need no cast. The input of each
norm is saved once, trained or not. The attention output is saved once, for itself and for the next matrix product.
Inputs of other linear layers are not saved, since the outputs of norms and SwiGLU are recomputed. Without a norm before
the linear layers ``2h`` are added. SwiGLU saves ``2i * b`` if gate and up are two layers.

Attention scores (tokens x tokens) and logits (tokens x vocabulary) are never saved. With gradient checkpointing
``h * b`` is saved per layer, and one layer at a time in full. Layers below the first trainable one save nothing.

With tensors on its heap (`DeviceTraits.heap`) the process needs more memory. torch requests aligned blocks, and glibc
2.36 cannot reuse a freed block for an aligned request of the same size. The forward pass therefore leaves holes between
saved tensors, more holes with more temporaries. `HOLES` fits the peaks of nine runs, less live memory, to 7%: 32 to 57
M parameters, 350 to 2,024 tokens, float32, adapters and full, with and without checkpointing. Blocks of 32 MiB or more
are mapped one by one and leave no holes. With M_MMAP_THRESHOLD at 1 MiB there were no holes, but a step cost 40% more
CPU time in page faults; at 4 MiB there was no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ftcore.resources.device_traits import DeviceTraits
from ftcore.resources.model_shapes import Architecture
from ftcore.utils.units import in_units

__all__ = ["Architecture", "Depth", "Estimate", "Need", "estimate"]

BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
RUNTIME_BYTES = 540 << 20
"""Resident memory of a process that trains a tiny model (470 MB), and the buffers of larger matrix products."""
HOLES = {(True, False): 1.25, (False, False): 0.6, (True, True): 0.85, (False, True): 0.5}
"""``(adapter, gradient checkpointing)`` -> bytes of holes per byte saved (with checkpointing: saved without it)."""
LEAN_HOLES = {(True, False): 0.4, (False, False): 0.6, (True, True): 0.4, (False, True): 0.75}
"""The same with fused layers, which make fewer temporaries; fitted to six runs as above."""
MAPPED_BYTES = 32 << 20
"""glibc's largest threshold for mapping a block by itself (DEFAULT_MMAP_THRESHOLD_MAX)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """The depth of the backward pass, and the memory of adapters per layer.

    Args:
        layers: number of layers in the backward pass, from the top.
        head: whether the vocabulary head is trained, so that its gradient is accumulated.
        rank: mean rank of the adapters over all linear layers.
        results: number of tensors, each of the size of a linear layer's output, that its adapter saves.
    """

    layers: int
    head: bool
    rank: float = 0.0
    results: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The inputs of an estimate.

    Args:
        weight_bytes: bytes of the loaded base model, trained parameters included unless ``adapter``.
        trainable: number of trained parameters.
        adapter: whether trained parameters are added to the base model.
        depth: depth of the backward pass.
        state_bytes: optimizer state per trained parameter.
        compute: dtype of activations.
        trained: dtype of trained parameters and their gradients.
        rows: rows per device and batch.
        batch_tokens: maximum tokens of a batch, unless a row has more; instead of rows.
        pass_tokens: maximum tokens per forward pass, unless a row has more; None for whole batches.
        together: number of passes that run in parallel, each with at least one row. With several, they take rows from
            all accumulated batches.
        cutoff_len: tokens of the longest row; there is no padding.
        tokens_per_row: mean length, if known; else every row is assumed to have the maximum length.
        sequences_per_row: sequences per row (two for a pair).
        gradient_checkpointing: whether activations are recomputed in the backward pass.
        gradient_accumulation_steps: from 2 on, gradients are in memory during forward passes.
        adapter_dropout: whether adapters have dropout on their inputs.
        device: traits of the device.
        runtime: bytes of the process itself.
    """

    weight_bytes: float
    trainable: int
    adapter: bool
    depth: Depth
    state_bytes: float
    device: DeviceTraits
    rows: int
    cutoff_len: int
    batch_tokens: int | None = None
    pass_tokens: int | None = None
    together: int = 1
    compute: str = "float32"
    trained: str = "float32"
    tokens_per_row: float | None = None
    sequences_per_row: float = 1.0
    gradient_checkpointing: bool = False
    gradient_accumulation_steps: int = 1
    adapter_dropout: bool = False
    runtime: int = RUNTIME_BYTES

    @property
    def lean(self) -> bool:
        """Whether norms and SwiGLU are fused."""
        as_stored = self.compute == self.trained or self.adapter  # else autocast casts trained parameters
        return self.compute in self.device.fused_dtypes and as_stored

    @property
    def row(self) -> float:
        """Mean number of tokens of a row with all its sequences."""
        mean = self.cutoff_len if self.tokens_per_row is None else min(self.tokens_per_row, self.cutoff_len)
        return self.sequences_per_row * mean

    @property
    def whole(self) -> float:
        """Tokens of one batch."""
        if self.batch_tokens is not None:
            return max(self.batch_tokens, self.sequences_per_row * self.cutoff_len)
        return self.rows * self.row

    @property
    def tokens(self) -> float:
        """Tokens that are computed at a time."""
        if self.pass_tokens is None:
            return self.whole
        several = self.together > 1
        step = self.whole * (self.gradient_accumulation_steps if several else 1)
        return min(step, max(self.pass_tokens, min(self.together, self.rows) * self.row))

    @property
    def accumulates(self) -> bool:
        """Whether gradients are in memory during forward passes."""
        return self.gradient_accumulation_steps > 1 or self.tokens < self.whole or self.together > 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """A memory estimate.

    Args:
        terms: name -> bytes. ``total`` may be less than the sum: without accumulation, gradients and activations do not
            peak together.
        total: bytes at the peak.
        note: the case that was estimated.
    """

    terms: Mapping[str, int]
    total: int
    note: str = ""
    trainable: int = field(default=0)

    @property
    def largest(self) -> str:
        """Name of the largest term."""
        return max(self.terms, key=lambda name: self.terms[name])

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``, in bytes."""
        return {"total": self.total, "largest": self.largest, "terms": dict(self.terms), "note": self.note}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {in_units(size)}" for name, size in self.terms.items() if size)
        return f"{in_units(self.total)} for {self.note}: {parts}"


def estimate(architecture: Architecture, need: Need) -> Estimate:
    """The memory at the peak of a training step, on one device."""
    width = BYTES[need.trained]
    on_top = need.trainable * width
    layers, layer = need.depth.layers, _kept_by_layer(architecture, need) * need.tokens
    ends = 4.0 * architecture.hidden_size * (3 - need.adapter) * need.tokens
    kept = layers * layer + ends if layers else 0.0
    share = (LEAN_HOLES if need.lean else HOLES)[need.adapter, need.gradient_checkpointing]
    holes = share * kept * _small(architecture, need) if need.device.heap else 0.0
    if need.gradient_checkpointing and layers:
        kept = layers * architecture.hidden_size * BYTES[need.compute] * need.tokens + layer
    casts = 0.0
    if not need.adapter and need.compute != need.trained:
        casts = architecture.linear_parameters * layers / architecture.layers * BYTES[need.compute]
    terms = {
        "weights": need.weight_bytes if need.adapter else need.weight_bytes - on_top,
        "trained parameters": on_top,
        "gradients": on_top * (1 + need.together * (need.together > 1)),
        "optimizer state": need.trainable * need.state_bytes,
        # the backward pass needs about as much as one layer saves
        "activations": kept + layer + casts,
        "heap holes": holes,
        "logits chunk": _logits(architecture, need),
        "runtime": need.runtime,
    }
    sizes = {name: round(size) for name, size in terms.items()}
    return Estimate(sizes, _peak(sizes, need), _note(need), need.trainable)


def _peak(sizes: Mapping[str, int], need: Need) -> int:
    """Bytes at the peak: activations are freed as gradients are computed; the larger counts, unless accumulated."""
    forward = sizes["activations"] + sizes["heap holes"] + sizes["logits chunk"]
    held = sizes["gradients"]
    moving = forward + held if need.accumulates else max(forward, held)
    return sum(sizes[name] for name in ("weights", "trained parameters", "optimizer state", "runtime")) + moving


def _kept_by_layer(arch: Architecture, need: Need) -> float:
    """Bytes per token that autograd saves for one layer."""
    hidden, queries, keys, inner = arch.hidden_size, arch.query_size, arch.key_size, arch.intermediate_size
    width, trained = BYTES[need.compute], not need.adapter
    gated = need.lean and any(name == "gate_proj" for name, *_ in arch.linears)
    norms = arch.norms * hidden + arch.qk_norm * (queries + keys)
    layer = (width if need.lean else 4.0) * norms * (1 + (trained and not need.lean)) + 4.0 * arch.heads
    layer += width * (2 * queries + 2 * keys)
    each = sum(size_in for _, size_in, _, _ in arch.linears)
    shared = 0 if need.lean else queries  # the attention output, which attention saves itself
    shared += 2 * hidden * (not (need.lean and arch.norms_before)) + inner * (not (arch.experts or gated))
    own_inputs = need.adapter and width < 4 and not need.lean
    layer += width * (each if own_inputs else shared)
    if need.adapter and need.adapter_dropout:
        layer += width * (2 * each - (0 if own_inputs else shared))
    if arch.experts:
        layer += width * arch.active_experts * (hidden + 3 * arch.expert_size)
        layer += width * arch.active_experts * (hidden + arch.expert_size) * trained
    else:
        layer += width * (2 if gated else 3) * inner
    if need.adapter:
        layer += width * need.depth.rank * len(arch.linears)
        layer += width * need.depth.results * sum(size_out for _, _, size_out, _ in arch.linears)
    return layer


def _small(arch: Architecture, need: Need) -> float:
    """Share of the saved bytes in blocks that are too small to be mapped by themselves."""
    inner = arch.intermediate_size or arch.expert_size
    widths = (*(arch.hidden_size,) * 4, *(arch.query_size,) * 3, *(arch.key_size,) * 2, *(inner,) * 4)
    small = sum(width for width in widths if width * BYTES[need.compute] * need.tokens < MAPPED_BYTES)
    return small / sum(widths)


def _logits(arch: Architecture, need: Need) -> float:
    """Bytes of one chunk or tile of logits, and of the head's accumulated gradient."""
    rows = min(need.tokens, max(16, need.device.chunk_bytes // (4 * arch.vocab_size)))
    chunk = rows * arch.vocab_size * (4 if need.compute == "float32" else 8)
    if (tile := need.device.head_tile) and need.compute == "float32" and not need.depth.head:
        chunk = min(need.tokens, tile[0]) * min(arch.vocab_size, tile[1]) * 4
    hidden = need.tokens * arch.hidden_size * 4 * 2
    return chunk + hidden + (arch.vocab_size * arch.hidden_size * 4 if need.depth.head else 0)


def _note(need: Need) -> str:
    recomputed = ", activations recomputed" if need.gradient_checkpointing else ""
    recomputed = f", {need.tokens:.0f} tokens at a time{recomputed}" if need.tokens < need.whole else recomputed
    if need.batch_tokens is not None:
        return f"batches of {need.whole:.0f} tokens{recomputed}"
    rows = f"{need.rows} row" + "s" * (need.rows != 1)
    known = need.tokens_per_row is not None and need.tokens_per_row < need.cutoff_len
    tokens = f"{need.tokens_per_row:.0f} tokens on average" if known else f"{need.cutoff_len} tokens"
    pairs = f", {need.sequences_per_row:g} sequences each," if need.sequences_per_row != 1 else ""
    return f"{rows}{pairs} of {tokens}{recomputed}"
