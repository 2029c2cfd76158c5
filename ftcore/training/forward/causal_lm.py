"""A causal language model's forward pass to losses and log-probabilities, by the fastest way that a probe verifies."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from ftcore.data.multimodal.images import OF_IMAGES
from ftcore.errors import UsageError
from ftcore.training.attention import varlen
from ftcore.training.attention.kernel import AttentionKernel, UnsupportedAttentionError
from ftcore.training.backend import REFERENCE, BackendRuntime
from ftcore.training.batching.collators import Batch, collate, on_device, padded
from ftcore.training.batching.shared_prefix import share_prefixes
from ftcore.training.cost_model.prefix import AlwaysShare
from ftcore.training.forward.dependence import check_causal, check_images
from ftcore.training.frozen_layer_cache.cache import FrozenLayerCache
from ftcore.training.losses import linear_cross_entropy as losses
from ftcore.training.losses.linear_cross_entropy import LMHead
from ftcore.training.numerics import TOLERANCE, equivalent, evaluating

log = logging.getLogger(__name__)

ATTENTION_KWARGS = (
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "prefixes",
    "kv_part",
    "attention_kernels",
)
"""Keyword arguments that a decoder passes through to attention over a packed row."""


class RowSplit(Protocol):
    """Computes one packed row in several concurrent parts; a backend may bring one."""

    def accepts(self, batch: Batch) -> bool:
        """Whether to split this batch."""

    def __call__(self, batch: Batch, outputs: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        """The outputs of the batch: those of its parts, concatenated."""


class CausalLMForward:
    """Computes a causal language model's losses on the labels of a batch.

    Args:
        model: a transformers model with a vocabulary head, or a PeftModel around one.
        backend: the run's; None for plain torch.

    Attributes:
        packed: sequences are packed end to end, with ``ft_varlen`` attention; else padded, with the model's attention.
        fused: hidden states go through `ftcore.training.losses.linear_cross_entropy`; else the model's own forward
            makes the logits, of the trained positions only.
        compute_dtype: the smallest dtype among the weights; results are no finer. Trained weights may be in float32.
        shares: sequences may share a prefix; packed only.
        frozen_layer_cache: the outputs of the layers before the first trainable one; None where they are not cached.
            Packed and fused only.
        attention: the backend's kernels for packed sequences.
        splits_rows: kernels compute the attention of all layers for a row that is one part of a longer one too.
        sequence_split: computes one batch in two concurrent parts; None where batches are computed whole.
        last: the pruned last layer (`ftcore.training.model_transforms.last_layer_pruning`); packed only.
        compiled: backend and mode of compiled layers (`ftcore.training.model_transforms.torch_compile`); None for none.
        unseen: the check of the first batch with images (`ftcore.training.forward.dependence`); None once it passed.
        full_tensor: the whole of a weight, differentiable, where a parallel strategy shards it.
        smoothing: label smoothing of losses; log-probabilities have none.
    """

    reads_vocabulary = True
    """Whether each label needs a product with the vocabulary head."""

    def __init__(self, model: Any, backend: BackendRuntime | None = None) -> None:
        self.model, self.backend = model, REFERENCE if backend is None else backend
        self.inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.attention: tuple[AttentionKernel, ...] = self.backend.attention
        self.packed = self.shares = self.splits_rows = False
        self.frozen_layer_cache: FrozenLayerCache | None = None
        self.sequence_split: RowSplit | None = None
        self.last: nn.Module | None = None
        self.compiled: tuple[str, str | None] | None = None
        self.unseen: Callable[[CausalLMForward, Batch, float], bool] | None = check_images
        self.smoothing = 0.0
        self.full_tensor: Callable[[torch.Tensor], torch.Tensor] = _whole
        self.fused = self._head_module() is not None
        dtypes = {tensor.dtype for tensor in model.parameters()} & TOLERANCE.keys()
        self.compute_dtype = min(dtypes, key=lambda dtype: dtype.itemsize)

    def weighted_nll(self, batch: Batch) -> torch.Tensor:
        """Weighted sum of the losses at the batch's labels, a scalar."""
        return self.run(batch, self._weighted_nll).sum()

    def _weighted_nll(self, batch: Batch) -> torch.Tensor:
        labels, weights = self._labels(batch), batch["weights"][0, batch["positions"]]
        if self.fused:
            kernels = self.backend.linear_cross_entropy
            hidden, head = self.hidden(batch), self.head()
            return losses.weighted_nll(hidden, head, labels, weights, self.smoothing, kernels=kernels)[None]
        return (self._own_losses(self._own_logits(batch), labels) * weights).sum()[None]

    def logps(self, batch: Batch) -> torch.Tensor:
        """Log-probabilities ``[T]`` of the batch's labels."""
        return self.run(batch, self._logps)

    def _logps(self, batch: Batch) -> torch.Tensor:
        labels = self._labels(batch)
        return self.token_logps(self.hidden(batch), labels) if self.fused else self._own_logps(batch, labels)

    def token_logps(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Log-probabilities ``[T]`` of labels ``[T]``, given the decoder's output ``[T, H]`` there; where `fused`."""
        return losses.token_logps(hidden, self.head(), labels, kernels=self.backend.linear_cross_entropy)

    def run(self, batch: Batch, outputs: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        """The outputs of a batch, in two concurrent parts where `sequence_split` accepts it."""
        return (
            outputs(batch)
            if self.sequence_split is None or not self.sequence_split.accepts(batch)
            else self.sequence_split(batch, outputs)
        )

    def nll_and_hits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses ``[T]`` of the batch's labels, and whether each is the most likely token, bool ``[T]``; no
        gradients."""
        labels = self._labels(batch)
        if self.fused:
            kernels = self.backend.linear_cross_entropy
            return losses.nll_and_hits(self.hidden(batch), self.head(), labels, self.smoothing, kernels=kernels)
        logits = self._own_logits(batch)
        return self._own_losses(logits, labels), logits.argmax(-1) == labels

    def _own_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logps = logits.log_softmax(-1)
        chosen = logps.gather(1, labels[:, None])[:, 0]
        return -(chosen if not self.smoothing else torch.lerp(chosen, logps.mean(-1), self.smoothing))

    def hidden(self, batch: Batch) -> torch.Tensor:
        """The decoder's last hidden states ``[T, H]`` at the positions that have a label."""
        if "images" in batch:
            self._see(batch)
            kept = [
                self.inner.base_model(**one, use_cache=False).last_hidden_state[0, at]
                for one, at, _ in self.sequences(batch)
            ]
            return torch.cat(kept)
        if self.frozen_layer_cache is not None:
            return self.frozen_layer_cache.run(batch, self.last is not None)
        trimmed = self.last is not None
        return hidden_states(self.inner.get_decoder(), batch, self.attention, packed=self.packed, trimmed=trimmed)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """A batch as keyword arguments of the decoder; packed only."""
        return flat_inputs(batch, self.attention)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits ``[T, V]`` at the positions that have a label, by the chosen way; for small batches."""
        return self.head().logits(self.hidden(batch)) if self.fused else self._own_logits(batch)

    def layers(self) -> nn.ModuleList | None:
        """The decoder's layers; None where they are not one plain stack."""
        count = self.inner.config.get_text_config().num_hidden_layers
        found = [one for one in self.inner.get_decoder().children() if isinstance(one, nn.ModuleList)]
        stacks = [one for one in found if len(one) == count]
        return stacks[0] if len(stacks) == 1 else None

    def head(self) -> LMHead:
        """The vocabulary head as a formula."""
        module = self._head_module()
        assert module is not None
        config = self.inner.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        softcap = getattr(config, "final_logit_softcapping", None)
        bias = None if module.bias is None else self.full_tensor(module.bias)
        return LMHead(self.full_tensor(module.weight), bias, scale, softcap)

    def _head_module(self) -> nn.Linear | None:
        """The head where it is a plain linear layer; PEFT's trained copy of it where that is active."""
        module = self.inner.get_output_embeddings()
        if hasattr(module, "modules_to_save"):
            off = module.disable_adapters
            module = module.original_module if off else module.modules_to_save[module.active_adapter]
        return module if type(module) is nn.Linear else None

    def _labels(self, batch: Batch) -> torch.Tensor:
        return batch["labels"][0, batch["positions"]]

    def _own_logps(self, batch: Batch, labels: torch.Tensor) -> torch.Tensor:
        return self._own_logits(batch).log_softmax(-1).gather(1, labels[:, None])[:, 0]

    def _own_logits(self, batch: Batch) -> torch.Tensor:
        """The model's own logits, ``[T, V]``, in float32 or float64."""
        if "images" in batch:
            self._see(batch)
            logits = torch.cat(
                [
                    self.model(**one, use_cache=False, logits_to_keep=at).logits[0]
                    for one, at, _ in self.sequences(batch)
                ]
            )
        elif self.packed:
            logits = self.model(**self.inputs(batch), logits_to_keep=batch["positions"]).logits[0]
        else:
            inputs = padded(batch)
            rows, columns = inputs.pop("rows"), inputs.pop("columns")
            # transformers takes one set of columns for all rows: the union of the columns with labels
            keep, where = columns.unique(return_inverse=True)
            logits = self.model(**inputs, use_cache=False, logits_to_keep=keep).logits[rows, where]
        return logits if logits.dtype == torch.float64 else logits.float()

    def sequences(self, batch: Batch) -> Iterator[tuple[dict[str, Any], torch.Tensor, torch.Tensor]]:
        """Each sequence of a batch with images: the model's inputs, the positions ``[n]`` of its labels, and which
        tokens stand for parts of images, bool ``[L]``.

        Sequences are computed one by one, so that the model computes positions, which images change, and its attention
        mask: some models let the parts of an image, or a whole prompt, attend to each other.
        """
        wanted = _arguments(self.inner)
        starts, positions = batch["cu_seqlens"].tolist(), batch["positions"]
        for start, end, images in zip(starts, starts[1:], batch["images"], strict=False):
            ids = batch["input_ids"][:, start:end]
            of_images = images.get(OF_IMAGES, torch.zeros_like(ids))[0].bool()
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}
            inputs.setdefault("mm_token_type_ids", of_images.long()[None])
            at = positions[(positions >= start) & (positions < end)] - start
            yield {name: value for name, value in inputs.items() if name in wanted}, at, of_images

    def logits_of(self, inputs: Mapping[str, Any], at: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, V]`` of one of the `sequences` at these places."""
        if self.fused:
            return self.head().logits(self.inner.base_model(**inputs, use_cache=False).last_hidden_state[0, at])
        return self.model(**inputs, use_cache=False, logits_to_keep=at).logits[0].float()

    def _see(self, batch: Batch) -> None:
        """Checks on the first batches with images that outputs depend on the images, and not on the answer."""
        if self.unseen is not None:
            with evaluating(self.model):
                shown = self.unseen(self, batch, TOLERANCE[self.compute_dtype])
            self.unseen = None if shown else self.unseen

    def probe_capabilities(self) -> None:
        """Enables packing, the fused loss and shared prefixes as far as they reproduce the model's own logits.

        The reference is the model's own padded forward on two short sequences. A model with state along the row, or
        with an unknown computation of its logits, therefore keeps its own forward. All capabilities are tried together
        first, as most models have them: each forward pass reads all weights.

        Raises:
            UsageError: the model predicts tokens from those that follow them.
        """
        short, whole = self.probe(), self.placed(_probe(self.inner, beginnings=True))
        own_attention = self.inner.config._attn_implementation
        with evaluating(self.model):
            expected = self._own_logits(whole)
            check_causal(self, whole, expected, _COMMON, TOLERANCE[self.compute_dtype])
            expected = expected[torch.isin(whole["positions"], short["positions"])]
            hoped = self.fused
            if self._tries(short, expected, fused=hoped, shares=True):
                return
            self.inner.set_attn_implementation(own_attention)
            self.fused = hoped and equivalent(_tried(self, short), expected, TOLERANCE[self.compute_dtype])
            if not self.fused:
                log.warning("the fused loss does not reproduce the model's logits: its own forward is used instead")
            if self.fused != hoped and self._tries(short, expected, fused=self.fused, shares=True):
                return
            if self._tries(short, expected, fused=self.fused, shares=False):
                return
            self.inner.set_attn_implementation(own_attention)
            log.warning("packed sequences do not reproduce the model's logits: batches are padded instead")
            self._check_unpadded()

    def _check_unpadded(self) -> None:
        """Checks causality of batches without padding, for which transformers passes no mask to the attention kernel.

        PaliGemma's text model tells the kernel that it is not causal: a token then attends to all that follow. Eager
        attention always gets a mask, and is used then.
        """
        even, tolerance = self.placed(_probe(self.inner, beginnings=True, even=True)), TOLERANCE[self.compute_dtype]
        try:
            check_causal(self, even, self.logits(even), _COMMON, tolerance)
        except UsageError:
            self.inner.set_attn_implementation("eager")
            check_causal(self, even, self.logits(even), _COMMON, tolerance)

    def _tries(self, short: Batch, expected: torch.Tensor, *, fused: bool, shares: bool) -> bool:
        """Sets these capabilities if packed sequences, with or without a shared prefix, reproduce the expected
        logits."""
        self.fused, self.packed, self.shares = fused, self._can_pack() and (self.can_share or not shares), shares
        if self.packed:
            self.inner.set_attn_implementation(varlen.NAME)
            batch = self.placed(share_prefixes(_probe(self.inner), AlwaysShare())) if shares else short
            calls: list[AttentionKernel] = []
            self.attention = varlen.recording(self.backend.attention, calls)
            try:
                self.packed = equivalent(_tried(self, batch), expected, TOLERANCE[self.compute_dtype])
            finally:
                self.attention = self.backend.attention
            self.splits_rows = self.packed and all(kernel.splits_rows for kernel in calls)
        self.shares = self.packed and shares
        return self.packed

    def probe(self) -> Batch:
        """Two short sequences, on the model's device."""
        return self.placed(_probe(self.inner))

    def placed(self, batch: Batch) -> Batch:
        """A batch on the model's device, with ``positions`` at which this scorer reads the model's outputs."""
        return self.read_at(on_device(batch, self.inner.device))

    def read_at(self, batch: Batch) -> Batch:
        """The batch with ``positions`` at which this scorer reads the model's outputs: those of the labels."""
        return batch

    @property
    def can_share(self) -> bool:
        """Whether to probe shared prefixes."""
        return True

    def _can_pack(self) -> bool:
        """Checks in the configuration what a short probe cannot show: chunked attention, or state along the
        sequence."""
        config = self.inner.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        return kinds <= {"full_attention", "sliding_attention"} and not getattr(config, "attention_chunk_size", None)


def hidden_states(
    decoder: Any, batch: Batch, kernels: Sequence[AttentionKernel] = (), *, packed: bool, trimmed: bool = False
) -> torch.Tensor:
    """A decoder's last hidden states ``[T, H]`` at the positions that have a label.

    Args:
        decoder: what ``get_decoder`` returns; with ``ft_varlen`` attention if packed.
        batch: on its device.
        kernels: a backend's, for the attention of packed sequences.
        packed: whether sequences are packed; else padded.
        trimmed: whether its last layer is pruned to these positions.
    """
    if packed and trimmed:
        found = decoder(**flat_inputs(batch, kernels), labelled=batch["positions"])
        return cast("torch.Tensor", found.last_hidden_state[0])
    if packed:
        states = decoder(**flat_inputs(batch, kernels)).last_hidden_state
        return states[0, batch["positions"]]
    inputs = padded(batch)
    rows, columns = inputs.pop("rows"), inputs.pop("columns")
    return decoder(**inputs, use_cache=False).last_hidden_state[rows, columns]


def flat_inputs(batch: Batch, kernels: Sequence[AttentionKernel] = ()) -> dict[str, Any]:
    """A batch as keyword arguments of a decoder with ``ft_varlen`` attention by these kernels."""
    starts, longest = batch["cu_seqlens"], batch["max_len"]
    told = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
    told |= {name: batch[name] for name in ("prefixes", "kv_part") if name in batch}
    told |= {"attention_kernels": kernels} if kernels else {}
    return {**told, "input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}


def _whole(weight: torch.Tensor) -> torch.Tensor:
    """A weight that no strategy shards."""
    return weight


_COMMON = 4
"""Length of the shared prefix of a probe's sequences."""


def _probe(model: Any, *, beginnings: bool = False, even: bool = False) -> Batch:
    """Two sequences of 9 and 8 tokens with a shared prefix of 4; all positions have labels except the second's prefix.

    Args:
        model: whose vocabulary is used.
        beginnings: whether the second's prefix has labels too.
        even: whether both have 8 tokens.
    """
    vocabulary = model.config.get_text_config().vocab_size
    one, other = ((np.arange(length, dtype=np.int32) * 37 + 11 * length) % vocabulary for length in (9, 8))
    later = np.ones(8, np.float32)
    later[: _COMMON + 1] = beginnings
    first = one[:8] if even else one
    second = np.concatenate([one[:_COMMON], other[_COMMON:]])
    rows = zip((first, second), (np.ones(len(first), np.float32), later), strict=True)
    return collate([{"input_ids": ids, "weights": weight, "index": 0} for ids, weight in rows])


def _arguments(model: Any) -> set[str]:
    """Names of the arguments that a model with images accepts, its base model's included."""
    parameters = inspect.signature(model.base_model.forward).parameters
    names = {name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
    return names if len(names) == len(parameters) else names | inspect.signature(model.forward).parameters.keys()


def _tried(scorer: CausalLMForward, batch: Batch) -> torch.Tensor | None:
    """The logits; None where the model's code raises an error."""
    try:
        return scorer.logits(batch)
    except (UnsupportedAttentionError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        log.warning("%s: %s", type(error).__name__, error)
        return None
