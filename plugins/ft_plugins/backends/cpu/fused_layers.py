"""Fused RMS norms, SwiGLU layers and linear layers for the CPU, which store fewer activations for the backward pass.

For transformers' Llama layer autograd stores 10.6 thousand numbers per token at a hidden size of 576 (see
`ftcore.resources.memory_model`), for the fused one 5.8 thousand: inputs of the norms, queries, keys, values and outputs
of attention, and outputs of the gate and up projections. Norms and activations are recomputed block by block in the
processor's cache; matrix products are not. A module is replaced if it has a known structure and, up to rounding,
computes the formula in this file. Modules on other devices, and those whose float32 weights autocast would cast, keep
their own forward. In bfloat16 norms accumulate in float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ft_plugins.backends.cpu import matmul, recompute
from ftcore.api.model_transform import Change, ModelTransform, Output, Slot, TransformContext
from ftcore.training.model_transforms.comparing import apply_changes
from ftcore.training.model_transforms.patching import replace_class
from ftcore.training.numerics import KERNEL_TOLERANCE, evaluating, fixed_random

BLOCK = 1 << 17
"""Numbers of a tensor per block: half a megabyte in float32, to fit into the processor's cache."""


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, width))
    return (slice(start, start + step) for start in range(0, rows, step))


class _Norm(Function):
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last axis; stores x ``[N, H]`` and the roots ``[N, 1]``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        roots = x.new_empty(len(x), 1, dtype=_working(x))
        for rows in _blocks(*x.shape):
            torch.rsqrt(x[rows].to(roots.dtype).pow(2).mean(-1, keepdim=True).add_(eps), out=roots[rows])
        ctx.save_for_backward(x, weight, roots)
        ctx.mark_non_differentiable(roots)
        return normed(x, roots, weight), roots

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, roots = ctx.saved_tensors
        of_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=roots.dtype) if ctx.needs_input_grad[1] else None
        for rows in _blocks(*x.shape):
            unit = x[rows] * roots[rows]
            if of_weight is not None:
                of_weight += (gradient[rows] * unit).sum(0)
            if of_x is not None:
                into = (gradient[rows] * weight).to(roots.dtype)
                along = (into * unit).mean(-1, keepdim=True)
                torch.mul(into.sub_(unit.mul_(along)), roots[rows], out=of_x[rows])
        return of_x, None if of_weight is None else of_weight.to(weight.dtype), None


def _working(x: torch.Tensor) -> torch.dtype:
    """The dtype of sums over a row."""
    return torch.promote_types(x.dtype, torch.float32)


def normed(x: torch.Tensor, roots: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``weight * (x * roots)``: ``[N, H]``, ``[N, 1]``, ``[H]`` -> ``[N, H]``, each product rounded to x's dtype."""
    out = torch.empty_like(x)
    for rows in _blocks(*x.shape):
        torch.mul(x[rows], roots[rows], out=out[rows]).mul_(weight)
    return out


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise activation, multiplied by ``up``.

    Args:
        function: the activation.
        silu: whether it is SiLU, whose kernels write into a given tensor. The results have the same bits; forward and
            backward of 918 times 1,536 numbers take 2.1 ms instead of 2.7 (Zen 5).
    """

    function: Callable[..., torch.Tensor]
    silu: bool

    def into(self, gate: torch.Tensor, up: torch.Tensor, result: torch.Tensor) -> None:
        """Writes ``act(gate) * up`` into ``result``."""
        if self.silu:
            torch.ops.aten.silu.out(gate, out=result)
            result.mul_(up)
        else:
            torch.mul(self.function(gate), up, out=result)

    def back(
        self, gate: torch.Tensor, up: torch.Tensor, gradient: torch.Tensor, of_gate: torch.Tensor, of_up: torch.Tensor
    ) -> None:
        """Writes the gradients of both into ``of_gate`` and ``of_up``."""
        if self.silu:
            torch.mul(gradient, up, out=of_gate)
            torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
            self.into(gate, gradient, of_up)
            return
        with torch.enable_grad():
            part = gate.detach().requires_grad_()
            active = self.function(part)
        torch.mul(gradient, active.detach(), out=of_up)
        of_gate.copy_(torch.autograd.grad(active, part, gradient * up)[0])


class _Gated(Function):
    """``act(gate) * up`` of ``[N, I]`` each; stores only these two."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, act: Activation) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return gated(gate, up, act)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        for rows in _blocks(*gate.shape):
            ctx.act.back(gate[rows], up[rows], gradient[rows], of_gate[rows], of_up[rows])
        return of_gate, of_up, None


def gated(gate: torch.Tensor, up: torch.Tensor, act: Activation) -> torch.Tensor:
    """``act(gate) * up``, ``[N, I]``."""
    out = torch.empty_like(gate)
    for rows in _blocks(*gate.shape):
        act.into(gate[rows], up[rows], out[rows])
    return out


class _Linear(Function):
    """``x @ weight.T + bias`` of ``[..., in]``; stores what recomputes its input, and nothing for a frozen weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        kept: recompute.SavedForRecompute,
    ) -> torch.Tensor:
        ctx.make, ctx.shape = kept.make, x.shape
        ctx.save_for_backward(weight, *(kept.parts if ctx.needs_input_grad[1] else ()))
        return matmul.linear_forward(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, *parts = ctx.saved_tensors
        needs = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_x = matmul.linear_backward_input(flat, weight).view(ctx.shape) if needs[0] else None
        of_weight = None
        if needs[1]:
            x = recompute.rematerialize(ctx.make, parts)
            of_weight = flat.t() @ x.reshape(-1, x.shape[-1])
        return of_x, of_weight, flat.sum(0) if needs[2] else None, None


class FusedRMSNorm:
    """An RMS norm computed by `_Norm`."""

    _eps: float
    _offset: float

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        layer: Any = self
        if args or kwargs or not matmul.plain(x, layer.weight):
            return cast("torch.Tensor", super().forward(x, *args, **kwargs))  # type: ignore[misc]
        weight = _weight(layer.weight, self._offset)
        out, roots = _Norm.apply(x.reshape(-1, x.shape[-1]), weight, self._eps)
        fixed = weight.detach()
        shape = x.shape

        def make(x: torch.Tensor, roots: torch.Tensor) -> torch.Tensor:
            return normed(x.reshape(-1, shape[-1]), roots, fixed).view(shape)

        return recompute.tag_recompute(out.view(shape), make, x, roots)


class FusedSwiGLU:
    """A feed-forward layer with gate, up and down projections, computed by `_Gated`."""

    _silu: bool

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        layer: Any = self
        hooks = layer.act_fn._forward_hooks or layer.act_fn._forward_pre_hooks
        if args or kwargs or hooks or not matmul.plain(x):
            return cast("torch.Tensor", super().forward(x, *args, **kwargs))  # type: ignore[misc]
        gate, up, act = layer.gate_proj(x), layer.up_proj(x), Activation(layer.act_fn.forward, self._silu)
        flat = gate.reshape(-1, gate.shape[-1]), up.reshape(-1, up.shape[-1])
        shape = gate.shape

        def make(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
            return gated(gate, up, act).view(shape)

        out = _Gated.apply(*flat, act).view(shape)
        return cast("torch.Tensor", layer.down_proj(recompute.tag_recompute(out, make, *flat)))


class FusedLinear:
    """A linear layer computed by `_Linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer: Any = self
        if not matmul.plain(x, layer.weight):
            return cast("torch.Tensor", super().forward(x))  # type: ignore[misc]
        return cast("torch.Tensor", _Linear.apply(x, layer.weight, layer.bias, recompute.saved_inputs(x)))


def _weight(weight: torch.Tensor, offset: float) -> torch.Tensor:
    """The weight plus its offset, in float32 at least: in bfloat16 1 plus a small number would be 1."""
    return weight.to(_working(weight)) + offset if offset else weight


def has_fused_layers(module: nn.Module) -> bool:
    """Whether a module contains fused layers of this file."""
    return any(isinstance(part, FusedRMSNorm | FusedSwiGLU | FusedLinear) for part in module.modules())


class FusedLayers(ModelTransform):
    """Replaces recognised modules on a CPU by fused ones; names, tensors and files stay the same.

    Modules on another device, or in float16, are not replaced. Each norm is compared with its own forward, and one
    feed-forward layer of each kind; a plain linear layer is known by its class.
    """

    name = "fused layers"
    summary = "norms, SwiGLU and linear layers on a CPU store fewer activations"
    slot = Slot.LAYERS

    def changes(self, context: TransformContext) -> Iterator[Change]:
        """One for each recognised module."""
        return _changes(context.model)


def fuse_layers(model: Any) -> dict[str, int]:
    """Replaces the recognised modules of a model without a run, in place.

    Args:
        model: a transformers model or a PeftModel around one.

    Returns:
        Number of replaced modules by kind.
    """
    kept, _ = apply_changes(_changes(model))
    found = Counter(change.kind for change in kept)
    return {kind: found[kind] for kind in ("norms", "gates", "linears")}


def _changes(model: Any) -> Iterator[Change]:
    head = model.get_output_embeddings()
    apart = set() if head is None else set(head.modules())  # `ftcore.training.losses.linear_cross_entropy` computes it
    gates: dict[Any, bool] = {}
    for module in list(model.modules()):
        if isinstance(module, (FusedRMSNorm, FusedSwiGLU, FusedLinear)):
            continue
        if _looks_like_norm(module):
            for offset in (0.0, 1.0):  # what is added to the weight: 1 in Gemma
                norm = _Fusing("norms", module, FusedRMSNorm, _of_norm, _eps=_eps_of(module), _offset=offset)
                yield norm
                if not norm.refused:
                    break
        elif _looks_like_gate(module):
            # each layer has one, whose products take 10 ms: those of the same classes, sizes and settings are alike
            parts: list[Any] = list(module.modules())
            alike = tuple((type(one), *map(len, one.parameters(recurse=False)), *_scalars(one)) for one in parts)
            outputs = None if alike in gates else _of_gate
            if gates.get(alike, True):
                change = _Fusing("gates", module, FusedSwiGLU, outputs, _silu=_is_silu(parts[0].act_fn))
                yield change
                gates.setdefault(alike, not change.refused)
        elif type(module) is nn.Linear and module not in apart and matmul.plain(module.weight):
            yield _Fusing("linears", module, FusedLinear)


class _Fusing(Change):
    def __init__(
        self, kind: str, module: nn.Module, way: type, outputs: Callable[[Any], Output] | None = None, **attributes: Any
    ) -> None:
        self.kind, self.module, self.way, self.attributes = kind, module, way, attributes
        self.output = outputs

    def apply(self) -> None:
        self.restore = replace_class(self.module, self.way, **self.attributes)

    def undo(self) -> None:
        self.restore()

    def outputs(self) -> Sequence[Output]:
        """Of the module, for random numbers."""
        if self.output is None:
            return ()
        with evaluating(self.module):
            return [self.output(self.module)]


def _of_norm(norm: Any) -> Output:
    x = fixed_random(3, len(norm.weight)).to(norm.weight.dtype)
    return Output("the norm", norm(x), KERNEL_TOLERANCE[x.dtype])


def _of_gate(layer: Any) -> Output:
    dtypes = [tensor.dtype for tensor in layer.parameters() if tensor.is_floating_point()]
    x = fixed_random(3, layer.gate_proj.in_features)[None].to(min(dtypes, key=lambda dtype: dtype.itemsize))
    out = layer(x)
    return Output("the feed-forward layer", out, KERNEL_TOLERANCE[out.dtype])


def _eps_of(module: nn.Module) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _looks_like_norm(module: nn.Module) -> bool:
    """Whether a module has one weight and an epsilon, as an RMS norm has."""
    weight = getattr(module, "weight", None)
    if not (isinstance(weight, nn.Parameter) and weight.ndim == 1 and isinstance(_eps_of(module), float)):
        return False
    if any(module.children()) or [name for name, _ in module.named_parameters()] != ["weight"]:
        return False
    return weight.dtype in KERNEL_TOLERANCE and weight.device.type == "cpu"


def _looks_like_gate(module: nn.Module) -> bool:
    """Whether a module has the parts of ``down(act(gate(x)) * up(x))``, on a CPU."""
    children = dict(module.named_children())
    if not {"gate_proj", "up_proj", "down_proj"} <= children.keys() or not hasattr(module, "act_fn"):
        return False
    return all(
        tensor.device.type == "cpu" and (not tensor.is_floating_point() or tensor.dtype in KERNEL_TOLERANCE)
        for tensor in module.parameters()
    )


def _is_silu(act: Any) -> bool:
    x = torch.linspace(-30, 30, 1001)
    try:
        return torch.equal(act(x), nn.functional.silu(x))
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False


def _scalars(module: nn.Module) -> list[tuple[str, Any]]:
    """Scalar settings of a module, such as the sparsity of Gemma 3n's layers, which differs between layers."""
    return sorted((name, value) for name, value in vars(module).items() if isinstance(value, int | float | str))
