"""Decoder layers compiled by torch (``torch_compile``), once for all layers of a class.

30 layers take as long to compile as one, about 10 s, for batches of any length. Attention is excluded
(`ftcore.training.attention.varlen`), and so is generation. On a Zen 5 in bfloat16 a step of sft takes 0.89 of the CPU
time with all of smollm2-135m trained, and 0.95 with LoRA, whose layers are ft's own (docs/performance.md). In float32
on a CPU nothing is compiled: `ft_plugins.backends.cpu.fused_layers` took 0.59 of the CPU time of compiled
layers with MKL's products, and 0.93 of that with oneDNN's.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from ftcore.api.model_transform import Change, ModelTransform, NotComparableError, Output, Slot, TransformContext
from ftcore.api.plan import Plan
from ftcore.resources.compilers import INDUCTOR
from ftcore.training.attention import varlen
from ftcore.training.batching.collators import Batch, collate
from ftcore.training.forward.causal_lm import ATTENTION_KWARGS, CausalLMForward
from ftcore.training.model_transforms.frozen_layers import first_trainable_layer
from ftcore.training.model_transforms.patching import replace_class
from ftcore.training.model_transforms.reference_context import ReferenceContext
from ftcore.training.numerics import TOLERANCE, fixed_random

PROBE = (301, 211)
"""Lengths of the two probe sequences. The compiler takes their sum as the typical size when it divides loops among
threads. It is fixed, so that a resumed run compiles the same code."""
_CANCELLED = 4  # factor on the tolerance for gradients, in which much cancels out
_WAYS = 64
"""Most compiled variants of one function; torch's default of 8 would leave further ones uncompiled. Variants: training
or not, adapters or not, gradient of the input or not, and so on."""
_LIMITED = "recompile_limit" in inspect.signature(torch.compile).parameters
"""Whether torch takes the limit for one function; else it is one of the process (or, in some versions, of a thread)."""
NAME = "ft_varlen_compiled"
"""transformers' name of the attention of compiled models; ``ft_varlen`` is that of others."""
_ROW = "ft_row"
_TOLD = frozenset({*ATTENTION_KWARGS, "labelled"})


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """Attention's arguments for a packed row, in one object that is opaque to the compiler.

    The compiler would recompile for each new value that it sees, such as shared prefixes.
    """

    told: dict[str, Any]


_CACHES = ("past_key_values", "cache")
"""Names of a layer's argument for keys and values of earlier tokens: the second since transformers 5.24."""


class CompiledLayer:
    """A layer with a compiled forward, except in generation.

    Without gradients it still runs the code compiled for gradients. Code compiled without them rounds differently, and
    a reference would differ from its own model: rewards at dpo's first step were up to 0.02 in bfloat16 instead of 0.
    """

    _ft_compiled: Callable[..., Any]
    _ft_named: frozenset[str]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if any(kwargs.get(name) is not None for name in _CACHES) or torch.is_inference_mode_enabled():
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if told := {name: kwargs.pop(name) for name in (kwargs.keys() & _TOLD) - self._ft_named}:
            kwargs[_ROW] = _Row(told)
        kwargs = {name: _own(value) for name, value in kwargs.items()}
        if torch.is_grad_enabled():
            return self._ft_compiled(*map(_own, args), **kwargs)
        with torch.enable_grad():
            made = self._ft_compiled(*map(_differentiable, args), **kwargs)
        return _each(torch.Tensor.detach, made)


def _each(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Applies a function to a tensor, or to the tensors of a tuple."""
    if isinstance(value, torch.Tensor):
        return change(value)
    return tuple(_each(change, one) for one in value) if type(value) is tuple else value


def _own(value: Any) -> Any:
    """Detaches tensors without a gradient, so they are not views: the compiler recompiles if that changes."""
    return _each(lambda tensor: tensor if tensor.requires_grad else tensor.detach(), value)


def _differentiable(value: Any) -> Any:
    return _each(lambda tensor: tensor.detach().requires_grad_(tensor.is_floating_point()), value)


@cache
def _mixin(kind: Any, backend: str, mode: str | None) -> type:
    """`CompiledLayer` for the layers of a class."""
    limit: Any = {"recompile_limit": _WAYS} if _LIMITED else {}
    compiled = torch.compile(kind.forward, dynamic=True, backend=backend, options=_options(backend, mode), **limit)
    own = {"_ft_compiled": compiled, "_ft_named": frozenset(inspect.signature(kind.forward).parameters)}
    return type("Compiled", (CompiledLayer,), own)


def _class(layer: Any) -> Any:
    return type(layer)


def _options(backend: str, mode: str | None) -> dict[str, Any] | None:
    """Options of the mode, and dropout with the random numbers of uncompiled code. torch takes a mode or options
    only."""
    if backend != INDUCTOR:
        return None
    from torch._inductor import list_mode_options

    return {**(list_mode_options(mode, dynamic=True) if mode else {}), "fallback_random": True}


@cache
def _register_attention() -> None:
    """Registers attention for compiled layers under `NAME`, besides the one of models that are not compiled."""

    def attend(*args: Any, **kwargs: Any) -> Any:
        row = kwargs.pop(_ROW, None)
        return varlen.varlen_attention(*args, **(kwargs | (row.told if row else {})))

    # excluded from compilation: it loops over sequences in Python
    AttentionInterface.register(NAME, torch.compiler.disable(attend))
    AttentionMaskInterface.register(NAME, varlen.packed_mask)


class TorchCompile(ModelTransform):
    """Compiles a scorer's decoder layers with ``torch_compile``, if their results stay the same.

    Layers before the first trainable one are not compiled: they have no backward pass, and may be cached
    (`ftcore.training.frozen_layer_cache.cache`). Output and gradients of each layer are compared with those before, on
    two sequences. If they differ by more than rounding, or the compiler fails, no layer is compiled, and the run
    reports that. Other models, which are references, are compiled too: compiled code rounds differently.
    """

    name = "compiled layers"
    summary = "torch compiles the trained decoder layers (torch_compile)"
    slot = Slot.COMPILE
    for_references = True

    def planned(self, plan: Plan) -> str:
        """With ``torch_compile``."""
        return "" if plan.training.compiler is not None else "torch_compile is off"

    def changes(self, context: TransformContext) -> Iterator[Change]:
        """All layers at once; a reason against it is reported."""
        scorer, began = context.scorer, time.perf_counter()
        layers = scorer.layers() if isinstance(scorer, CausalLMForward) else None
        if layers is not None and not isinstance(context, ReferenceContext):
            layers = layers[first_trainable_layer(layers) :]
        if why := _unsuited(context, layers):
            context.reports.info(f"torch_compile: no layer is compiled: {why}")
            return
        assert layers is not None
        compiling = _Compiling(context, layers)
        yield compiling
        done = f"{len(layers)} layers are compiled, {time.perf_counter() - began:.0f} s"
        why = compiling.refused and f"no layer is compiled: {compiling.refused}"
        context.reports.info(f"torch_compile: {why or done}")


def _unsuited(context: TransformContext, layers: nn.ModuleList | None) -> str:
    """Why the layers are not to be compiled; empty if they are."""
    if layers is None:
        return "the decoder is not a plain stack of layers"
    exact, device = context.plan.precision.compute == "float32", context.scorer.inner.device.type
    if exact and device == "cpu" and any(map(context.scorer.backend.has_fused_layers, layers)):
        return "in float32 on a CPU ft's fused layers are faster than compiled ones"
    return ""


class _Compiling(Change):
    def __init__(self, context: TransformContext, layers: nn.ModuleList) -> None:
        self.context, self.layers = context, layers
        self.scorer: CausalLMForward = context.scorer
        self.calls: list[_Call] = []
        self.restores: list[Callable[[], None]] = []

    def apply(self) -> None:
        wish = self.context.plan.training.compiler
        assert wish is not None
        own_attention = self.scorer.inner.config._attn_implementation
        if not _LIMITED:
            self.restores.append(_raise_limit())
        if own_attention == varlen.NAME:
            _register_attention()
            self.scorer.inner.set_attn_implementation(NAME)
            self.restores.append(partial(self.scorer.inner.set_attn_implementation, own_attention))
        self.restores += [replace_class(layer, _mixin(_class(layer), *wish)) for layer in self.layers]
        self.scorer.compiled = wish

    def undo(self) -> None:
        self.scorer.compiled = None
        while self.restores:
            self.restores.pop()()

    def outputs(self) -> Sequence[Output]:
        """The output of each layer and its gradients, for the calls that the decoder makes of it."""
        # in a worker, if there are any: code is compiled for its number of threads
        found: list[Output] = self.context.executor.run_one(self._outputs)
        return found

    def _outputs(self) -> list[Output]:
        computed = getattr(torch, self.context.plan.precision.compute)
        close = max(TOLERANCE[self.scorer.compute_dtype], TOLERANCE[computed])
        with torch.random.fork_rng(), self.context.autocast(), torch.enable_grad():
            if not self.calls:
                self.calls = _calls(self.scorer, self.layers)
            results = [call.results() for call in self.calls]
        # outputs of smollm2-135m's layers in bfloat16 differed by up to 0.007 of their norm, gradients by up to 0.055
        return [
            Output(f"layer {number}", one, _CANCELLED * close if at else close, norm=True)
            for number, tensors in enumerate(results)
            for at, one in enumerate(tensors)
        ]


def _raise_limit() -> Callable[[], None]:
    """Raises the limit of compiled variants for the process, for versions of torch without one for each function."""
    config: Any = torch._dynamo.config
    before = config.recompile_limit
    config.recompile_limit = max(before, _WAYS)

    def undo() -> None:
        config.recompile_limit = before

    return undo


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a layer, as the decoder makes it.

    Args:
        layer: that is called.
        args, kwargs: what it is given.
    """

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def results(self) -> list[torch.Tensor]:
        """The layer's output, and the gradients of its inputs and weights for a fixed gradient of the output."""
        torch.manual_seed(0)  # of dropout
        given = [_each(lambda one: one.detach().requires_grad_(one.requires_grad), value) for value in self.args]
        made = self.layer.forward(*given, **self.kwargs)
        out = made[0] if isinstance(made, tuple) else made
        wanted = [*given, *self.layer.parameters()]
        wanted = [one for one in wanted if isinstance(one, torch.Tensor) and one.requires_grad]
        found = [out.detach()]
        if out.requires_grad and wanted:
            random = fixed_random(*out.shape).to(out)
            gradients = torch.autograd.grad(out, wanted, random, allow_unused=True)
            found += [one for one in gradients if one is not None]
        return found


def _calls(scorer: CausalLMForward, layers: nn.ModuleList) -> list[_Call]:
    """The decoder's calls of its layers for two sequences.

    Raises:
        NotComparableError: it does not call each layer once, in order.
    """
    found: list[_Call] = []

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(_Call(layer, args, kwargs))

    with _watched(layers, note):
        scorer.logits(_probe(scorer))
    if [call.layer for call in found] != list(layers):
        raise NotComparableError("the model does not call its layers one after the other")
    return found


@contextmanager
def _watched(layers: nn.ModuleList, note: Callable[..., None]) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _probe(scorer: CausalLMForward) -> Batch:
    """Two sequences with a label at every eighth token."""
    vocabulary = scorer.inner.config.get_text_config().vocab_size
    rows = []
    for number, length in enumerate(PROBE):
        place = np.arange(length, dtype=np.int32)
        ids, weights = (place * 37 + 11 * number) % vocabulary, (place % 8 == 7).astype(np.float32)
        rows.append({"input_ids": ids, "weights": weights, "index": number})
    return scorer.placed(collate(rows))
