"""How much memory a training run needs, worked out from config.json and the plan: no torch, nothing is loaded.

What autograd keeps of one decoder layer, per token (read off torch 2.13's saved tensors;
tests/resources/test_memory_model.py repeats it). ``h`` hidden size, ``i`` intermediate size, ``q`` and ``k`` widths of
all query and of all key heads, ``b`` bytes of the compute dtype:

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

On a CPU, where what is trained needs no cast, `ftcore.training.model_transforms.fused_layers` keeps less: each norm's
input once, trained or not; attention's result once, for itself and for the product after it; nothing of the other
linear layers' inputs, as what norms and SwiGLU make is made again (``2h`` more where no norm stands before the linear
layers); ``2i * b`` of SwiGLU where gate and up are two layers.

Scores (tokens x tokens) and logits (tokens x vocabulary) are never kept. With gradient checkpointing one ``h * b`` is
kept per layer, and one layer at a time in full. Of layers under the lowest that is trained nothing is kept.

On a CPU the process grows by more than that: torch asks for aligned blocks, and glibc (2.36) cannot give a freed block
to an aligned request of the same size, so that the forward pass leaves holes between what is kept, the more the more
temporaries it makes. Peaks of nine runs (32 to 57 M parameters, 350 to 2,024 tokens, float32, adapters and full, with
and without checkpointing) less what is live fitted `HOLES` to 7%. Blocks from 32 MiB on are mapped one by one and leave
none. With every block from 1 MiB on mapped (M_MMAP_THRESHOLD) the holes were gone, and a step cost 40% more CPU time in
page faults; from 4 MiB on, neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ftcore.resources.model_shapes import Architecture
from ftcore.utils.units import in_units

__all__ = ["Architecture", "Depth", "Estimate", "Need", "estimate"]

BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
CHUNK_BYTES = 64 << 20
"""Float32 logits of one chunk of positions (`ftcore.training.losses.linear_cross_entropy.CHUNK_BYTES`, which a test
keeps equal)."""
TILE = (1536, 1024)
"""Positions and tokens of a tile of a frozen head's logits on a CPU
(`ftcore.training.losses.linear_cross_entropy.TILE`, likewise)."""
RUNTIME_BYTES = 540 << 20
"""Resident memory of a process that trains next to nothing (470 MB), and the buffers of larger matrix products."""
HOLES = {(True, False): 1.25, (False, False): 0.6, (True, True): 0.85, (False, True): 0.5}
"""``(adapter, gradient checkpointing)`` -> bytes of holes for each that is kept (without checkpointing would be)."""
LEAN_HOLES = {(True, False): 0.4, (False, False): 0.6, (True, True): 0.4, (False, True): 0.75}
"""The same where lean modules serve, which make fewer temporaries; six runs as above."""
MAPPED_BYTES = 32 << 20
"""glibc's largest threshold from which a block is mapped by itself (DEFAULT_MMAP_THRESHOLD_MAX)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How far the backward pass goes, and what it needs of each layer beside the layer itself.

    Args:
        layers: that it goes through, from the top.
        head: whether the vocabulary head is trained, so that its gradient is summed up.
        rank: of the adapters, the mean over all linear layers.
        results: how many tensors of the size of each linear layer's output an adapter keeps.
    """

    layers: int
    head: bool
    rank: float = 0.0
    results: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a run asks for.

    Args:
        weight_bytes: of the base model as it is loaded, trained parameters among them unless ``adapter``.
        trainable: number of trained parameters.
        adapter: whether these come on top of the base model.
        depth: of the backward pass.
        state_bytes: optimizer state per trained parameter.
        compute: dtype of activations.
        trained: dtype of trained parameters and their gradients.
        rows: per device and micro-batch.
        batch_tokens: of a micro-batch, at most, unless a row has more; instead of rows.
        pass_tokens: that are computed at a time, at most, unless rows have more; None for whole micro-batches.
        together: passes of which each has a row that are computed at a time; with several, rows of all accumulated
            micro-batches are.
        cutoff_len: tokens of the longest row; there is no padding.
        tokens_per_row: mean length where it is known, else every row is taken to be as long as it may.
        sequences_per_row: sequences that one row costs (two for a pair).
        gradient_checkpointing: whether activations are computed anew in the backward pass.
        gradient_accumulation_steps: from 2 on, gradients are held through the forward passes.
        adapter_dropout: whether adapters drop out of their inputs.
        heap: whether tensors lie on the process's heap: on a CPU, not on a GPU.
        runtime: bytes of the process itself.
    """

    weight_bytes: float
    trainable: int
    adapter: bool
    depth: Depth
    state_bytes: float
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
    heap: bool = True
    runtime: int = RUNTIME_BYTES

    @property
    def lean(self) -> bool:
        """Whether `ftcore.training.model_transforms.fused_layers` serves."""
        as_stored = self.compute == self.trained or self.adapter  # else autocast casts what is trained
        return self.heap and self.compute != "float16" and as_stored

    @property
    def row(self) -> float:
        """Tokens of a row with all its sequences, in the mean."""
        mean = self.cutoff_len if self.tokens_per_row is None else min(self.tokens_per_row, self.cutoff_len)
        return self.sequences_per_row * mean

    @property
    def whole(self) -> float:
        """Tokens of one micro-batch."""
        if self.batch_tokens is not None:
            return max(self.batch_tokens, self.sequences_per_row * self.cutoff_len)
        return self.rows * self.row

    @property
    def tokens(self) -> float:
        """That are computed at a time."""
        if self.pass_tokens is None:
            return self.whole
        several = self.together > 1
        step = self.whole * (self.gradient_accumulation_steps if several else 1)
        return min(step, max(self.pass_tokens, min(self.together, self.rows) * self.row))

    @property
    def accumulates(self) -> bool:
        """Whether gradients are held through forward passes."""
        return self.gradient_accumulation_steps > 1 or self.tokens < self.whole or self.together > 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by what they are for.

    Args:
        terms: name -> bytes. Gradients and activations do not peak together unless they pile up, so that
            ``total`` may be less than the sum.
        total: bytes at the peak.
        note: what it was worked out for.
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
    holes = share * kept * _small(architecture, need) if need.heap else 0.0
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
        # what the backward pass holds at a time is about as much as one layer keeps
        "activations": kept + layer + casts,
        "heap holes": holes,
        "logits chunk": _logits(architecture, need),
        "runtime": need.runtime,
    }
    sizes = {name: round(size) for name, size in terms.items()}
    return Estimate(sizes, _peak(sizes, need), _note(need), need.trainable)


def _peak(sizes: Mapping[str, int], need: Need) -> int:
    """The backward pass frees activations while it makes gradients: the larger of both counts, unless they pile up."""
    forward = sizes["activations"] + sizes["heap holes"] + sizes["logits chunk"]
    held = sizes["gradients"]
    moving = forward + held if need.accumulates else max(forward, held)
    return sum(sizes[name] for name in ("weights", "trained parameters", "optimizer state", "runtime")) + moving


def _kept_by_layer(arch: Architecture, need: Need) -> float:
    """Bytes per token that autograd keeps of one layer."""
    hidden, queries, keys, inner = arch.hidden_size, arch.query_size, arch.key_size, arch.intermediate_size
    width, trained = BYTES[need.compute], not need.adapter
    gated = need.lean and any(name == "gate_proj" for name, *_ in arch.linears)
    norms = arch.norms * hidden + arch.qk_norm * (queries + keys)
    layer = (width if need.lean else 4.0) * norms * (1 + (trained and not need.lean)) + 4.0 * arch.heads
    layer += width * (2 * queries + 2 * keys)
    each = sum(size_in for _, size_in, _, _ in arch.linears)
    shared = 0 if need.lean else queries  # attention's result, which it keeps itself
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
    """Share of the kept bytes that lies in blocks too small to be mapped by themselves."""
    inner = arch.intermediate_size or arch.expert_size
    widths = (*(arch.hidden_size,) * 4, *(arch.query_size,) * 3, *(arch.key_size,) * 2, *(inner,) * 4)
    small = sum(width for width in widths if width * BYTES[need.compute] * need.tokens < MAPPED_BYTES)
    return small / sum(widths)


def _logits(arch: Architecture, need: Need) -> float:
    """One chunk or tile through the vocabulary head, and what the head's gradient is summed up in."""
    rows = min(need.tokens, max(16, CHUNK_BYTES // (4 * arch.vocab_size)))
    chunk = rows * arch.vocab_size * (4 if need.compute == "float32" else 8)
    if need.heap and need.compute == "float32" and not need.depth.head:
        chunk = min(need.tokens, TILE[0]) * min(arch.vocab_size, TILE[1]) * 4
    hidden = need.tokens * arch.hidden_size * 4 * 2
    return chunk + hidden + (arch.vocab_size * arch.hidden_size * 4 if need.depth.head else 0)


def _note(need: Need) -> str:
    recomputed = ", activations recomputed" if need.gradient_checkpointing else ""
    recomputed = f", {need.tokens:.0f} of them at a time{recomputed}" if need.tokens < need.whole else recomputed
    if need.batch_tokens is not None:
        return f"batches of {need.whole:.0f} tokens{recomputed}"
    rows = f"{need.rows} row" + "s" * (need.rows != 1)
    known = need.tokens_per_row is not None and need.tokens_per_row < need.cutoff_len
    tokens = f"{need.tokens_per_row:.0f} tokens in the mean" if known else f"{need.cutoff_len} tokens"
    pairs = f", {need.sequences_per_row:g} sequences each," if need.sequences_per_row != 1 else ""
    return f"{rows}{pairs} of {tokens}{recomputed}"
