"""Decoder layers compiled by torch (``torch_compile``), once for all layers of a class.

30 layers take as long to compile as one, about 10 s, for batches of any length. Attention is excluded
(`ftcore.training.attention.varlen`), and so is generation. On a Zen 5 in bfloat16 a step of sft takes 0.89 of the CPU
time with all of smollm2-135m trained, and 0.95 with LoRA, whose layers are ft's own (docs/performance.md). In float32
on a CPU nothing is compiled: the backend's fused layers took 0.59 of the CPU time of compiled layers with MKL's
products, and 0.93 of that with oneDNN's.
"""

from __future__ import annotations

import inspect
import logging
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface

from ftcore.resources.compilers import INDUCTOR
from ftcore.training.attention import varlen
from ftcore.training.batching.collators import Batch, collate
from ftcore.training.forward.causal_lm import ATTENTION_KWARGS, CausalLMForward
from ftcore.training.model_transforms.frozen_layers import first_trainable_layer
from ftcore.training.numerics import TOLERANCE, equivalent, fixed_random

if TYPE_CHECKING:
    from ftcore.training.context import TrainingContext

log = logging.getLogger(__name__)

PROBE = (301, 211)
"""Lengths of the two probe sequences. The compiler takes their sum as the typical size when it divides loops among
threads. It is fixed, so that a resumed run compiles the same code."""
_CANCELLED = 4  # factor on the tolerance for gradients, in which much cancels out
_WAYS = 64
"""Most compiled variants of one function; torch's default of 8 would leave further ones uncompiled."""
_ROW = "ft_row"
_TOLD = frozenset({*ATTENTION_KWARGS, "labelled"})


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """Attention's arguments for a packed row, in one object that is opaque to the compiler.

    The compiler would recompile for each new value that it sees, such as shared prefixes.
    """

    told: dict[str, Any]


class CompiledLayer:
    """A layer with a compiled forward, except in generation.

    Without gradients it still runs the code compiled for gradients. Code compiled without them rounds differently, and
    a reference would differ from its own model: rewards at dpo's first step were up to 0.02 in bfloat16 instead of 0.
    """

    _ft_compiled: Callable[..., Any]
    _ft_named: frozenset[str]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is not None or torch.is_inference_mode_enabled():
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
def _kind(kind: Any, backend: str, mode: str | None) -> Any:
    own = {
        "__module__": kind.__module__,
        "_ft_compiled": torch.compile(kind.forward, dynamic=True, backend=backend, options=_options(backend, mode)),
        "_ft_named": frozenset(inspect.signature(kind.forward).parameters),
    }
    return type(f"Compiled{kind.__name__}", (CompiledLayer, kind), own)


def _options(backend: str, mode: str | None) -> dict[str, Any] | None:
    """Options of the mode, and dropout with the random numbers of uncompiled code. torch takes a mode or options
    only."""
    if backend != INDUCTOR:
        return None
    from torch._inductor import list_mode_options

    return {**(list_mode_options(mode, dynamic=True) if mode else {}), "fallback_random": True}


def compile_layers(trainer: TrainingContext, scorer: Any) -> None:
    """Compiles a scorer's decoder layers in place with ``torch_compile``, if their results stay the same.

    Layers before the first trainable one are not compiled: they have no backward pass, and may be cached
    (`ftcore.training.frozen_layer_cache.cache`). Output and gradients of each layer are compared with those before, on
    two sequences. If they differ by more than rounding, or the compiler fails, no layer is compiled, and the run
    reports that.

    Args:
        trainer: with the plan; the scorer's model computes on its device.
        scorer: of a model, with probed capabilities.
    """
    wish = trainer.plan.training.compiler
    if wish is None:
        return
    layers = scorer.layers() if isinstance(scorer, CausalLMForward) else None
    if layers is not None and scorer is trainer.scorer:
        layers = layers[first_trainable_layer(layers) :]
    exact = trainer.plan.precision.compute == "float32"
    began = time.perf_counter()
    if layers is None:
        why = "the decoder is not a plain stack of layers"
    elif exact and trainer.strategy.device.type == "cpu" and any(map(scorer.backend.has_fused_layers, layers)):
        why = "in float32 on a CPU ft's fused layers are faster than compiled ones"
    else:
        compiling = partial(_compiled, trainer, scorer, layers, *wish)
        # in a worker of the pool, if there is one: code is compiled for its number of threads
        why = trainer.executor.run_one(compiling)
        scorer.compiled = None if why else wish
    done = "" if layers is None else f"{len(layers)} layers are compiled, {time.perf_counter() - began:.0f} s"
    trainer.reports.info(f"torch_compile: {f'no layer is compiled: {why}' if why else done}")


def _compiled(
    trainer: TrainingContext, scorer: CausalLMForward, layers: nn.ModuleList, backend: str, mode: str | None
) -> str:
    """Compiles and verifies the layers; returns the reason if they are not compiled, else an empty text."""
    computed = getattr(torch, trainer.plan.precision.compute)
    close = max(TOLERANCE[scorer.compute_dtype], TOLERANCE[computed])
    own: list[Any] = [type(layer) for layer in layers]
    with torch.random.fork_rng(), trainer.autocast(), torch.enable_grad():
        calls = _calls(scorer, layers)
        if not calls:
            return "the model does not call its layers one after the other"
        expected = [call.results() for call in calls]
        AttentionInterface.register(varlen.NAME, _apart())
        # variants: training or not, adapters or not, gradient of the input or not, and so on; more than 8
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _WAYS)
        for layer, kind in zip(layers, own, strict=True):
            layer.__class__ = _kind(kind, backend, mode)
        why = _difference(calls, expected, close)
    if why:
        for layer, kind in zip(layers, own, strict=True):
            layer.__class__ = kind
    return why


def _difference(calls: Sequence[_Call], expected: Sequence[list[torch.Tensor]], close: float) -> str:
    """The first difference of compiled layers; empty for none."""
    for number, (call, results) in enumerate(zip(calls, expected, strict=True)):
        try:
            found = call.results()
        except Exception as error:  # compilers raise errors of many types
            log.debug("torch_compile", exc_info=True)
            return textwrap.shorten(f"{type(error).__name__}: {error}".split("\n\n")[0], 200)
        if not _alike(found, results, close):
            return f"layer {number} computes other results when compiled"
    return ""


@cache
def _apart() -> Any:
    """Attention excluded from compilation: it loops over sequences in Python."""

    def attend(*args: Any, **kwargs: Any) -> Any:
        row = kwargs.pop(_ROW, None)
        return varlen.varlen_attention(*args, **(kwargs | (row.told if row else {})))

    return torch.compiler.disable(attend)


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
    """The decoder's calls of its layers for two sequences; none if it does not call each layer once in order."""
    found: list[_Call] = []

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(_Call(layer, args, kwargs))

    with _watched(layers, note):
        scorer.logits(_probe(scorer))
    return found if [call.layer for call in found] == list(layers) else []


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


def _alike(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], close: float) -> bool:
    """Whether an output and gradients differ by no more than rounding; of gradients much may cancel out.

    Outputs of smollm2-135m's layers in bfloat16 differed by up to 0.007 of their norm, gradients by up to 0.055.
    """
    return len(found) == len(expected) and all(
        equivalent(mine, theirs, limit, norm=True)
        for mine, theirs, limit in zip(found, expected, [close, *[_CANCELLED * close] * len(found)], strict=False)
    )
