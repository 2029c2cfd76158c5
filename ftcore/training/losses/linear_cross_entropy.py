"""Fused linear cross-entropy: the vocabulary projection and the loss in one, on positions with labels only.

A backend brings kernels for it; here are their protocol, the selection (`weighted_nll`, `token_logps`, `nll_and_hits`)
and plain torch's, which computes chunks of positions: no tensor of size ``[positions, vocabulary]`` outlives a chunk.
The forward pass computes the gradient of the hidden states from the chunk's probabilities; with a frozen head this
saves the second projection of a recomputation. Losses are ``logsumexp(z) - z[label]`` in float32. On SmolLM2's logits
they differ from float64 by 7e-8, ``cross_entropy`` on log_softmax by 5.6e-6.

With label smoothing ``e`` a loss is ``(1 - e)`` times the label's loss plus ``e`` times the mean over the vocabulary,
as in transformers' LabelSmoother: ``logsumexp(z) - (1 - e) z[label] - e mean(z)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.autograd import Function
from torch.nn import functional

from ftcore.resources.device_traits import CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class LMHead:
    """A model's vocabulary head: logits are ``cap(scale * (h @ weight.T + bias))``.

    Args:
        weight: ``[V, H]``.
        bias: ``[V]`` or None.
        scale: Cohere's ``logit_scale``, one over Granite's ``logits_scaling``.
        softcap: Gemma 2's ``final_logit_softcapping``: z becomes ``softcap * tanh(z / softcap)``.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[T, H]`` -> ``[T, V]``, in float32 (float64 where the hidden states are)."""
        return self.capped(functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias))

    def capped(self, projected: torch.Tensor) -> torch.Tensor:
        """The logits, given ``h @ weight.T + bias``, which may be overwritten."""
        z = projected if projected.dtype == torch.float64 else projected.float()
        if self.scale != 1.0:
            z.mul_(self.scale)
        return z if self.softcap is None else self.softcap * z.div_(self.softcap).tanh_()

    def slope(self, z: torch.Tensor) -> torch.Tensor | None:
        """Derivative of the softcap at logits, ``d z / d (scale * (h @ weight.T + bias))``; None without a softcap."""
        return None if self.softcap is None else 1 - (z / self.softcap).square()

    @property
    def is_trained(self) -> bool:
        """Whether a gradient of the head is wanted."""
        tensors = [self.weight] if self.bias is None else [self.weight, self.bias]
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class LinearCrossEntropy(Protocol):
    """A way to compute losses of a vocabulary head; part of a backend's runtime (`ftcore.training.backend`).

    Arguments of all methods: ``hidden`` ``[T, H]``, the decoder's output at the positions that predict the labels;
    ``head``; ``labels`` ``[T]``, token ids; ``weights`` ``[T]``; ``smoothing``, label smoothing. T may be 0.
    """

    @property
    def name(self) -> str:
        """In messages and tests."""

    def supports(self, hidden: torch.Tensor, head: LMHead) -> bool:
        """Whether the other methods compute this, with the gradients of hidden states, weight and bias that are wanted:
        what is accepted here must be right."""

    def weighted_nll(
        self, hidden: torch.Tensor, head: LMHead, labels: torch.Tensor, weights: torch.Tensor, smoothing: float = 0.0
    ) -> torch.Tensor:
        """See `weighted_nll`."""

    def token_logps(self, hidden: torch.Tensor, head: LMHead, labels: torch.Tensor) -> torch.Tensor:
        """See `token_logps`."""

    def nll_and_hits(
        self, hidden: torch.Tensor, head: LMHead, labels: torch.Tensor, smoothing: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `nll_and_hits`."""


@dataclass(frozen=True, slots=True)
class Products:
    """The matrix products of `ChunkedLinearCrossEntropy`, none of them differentiated.

    Args:
        linear_forward: ``x @ weight.T + bias`` of x, weight, bias (or None).
        linear_backward_input: ``gradient @ weight``.
    """

    linear_forward: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    linear_backward_input: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class ChunkedLinearCrossEntropy:
    """Linear cross-entropy by chunks of positions, in plain torch on any device.

    Args:
        products: a backend's own matrix products; torch's where not given.
    """

    name = "chunked"

    def __init__(self, products: Products | None = None) -> None:
        self.products = products or Products(functional.linear, torch.matmul)

    def supports(self, hidden: torch.Tensor, head: LMHead) -> bool:
        """Everything."""
        return True

    def weighted_nll(
        self, hidden: torch.Tensor, head: LMHead, labels: torch.Tensor, weights: torch.Tensor, smoothing: float = 0.0
    ) -> torch.Tensor:
        """See `weighted_nll`."""
        options = (self.products, head.scale, head.softcap, torch.is_grad_enabled(), smoothing)
        found: torch.Tensor = _WeightedNLL.apply(hidden, head.weight, head.bias, labels, weights, options)
        return found

    def token_logps(self, hidden: torch.Tensor, head: LMHead, labels: torch.Tensor) -> torch.Tensor:
        """See `token_logps`."""
        options = (self.products, head.scale, head.softcap, torch.is_grad_enabled())
        losses: torch.Tensor = _TokenNLL.apply(hidden, head.weight, head.bias, labels, options)
        return -losses

    def nll_and_hits(
        self, hidden: torch.Tensor, head: LMHead, labels: torch.Tensor, smoothing: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `nll_and_hits`."""
        losses, hits = empty_losses(hidden), torch.empty(len(labels), dtype=torch.bool, device=hidden.device)
        with torch.no_grad():
            for rows in _chunks(head, len(labels)):
                z = _logits(self.products, head, hidden[rows])
                chosen = z.gather(1, labels[rows, None])[:, 0]
                losses[rows] = z.logsumexp(-1) - (smoothed(chosen, z.mean(1), smoothing) if smoothing else chosen)
                hits[rows] = z.argmax(-1) == labels[rows]
        return losses, hits


CHUNKED = ChunkedLinearCrossEntropy()


def _logits(products: Products, head: LMHead, hidden: torch.Tensor) -> torch.Tensor:
    return head.capped(products.linear_forward(hidden.to(head.weight.dtype), head.weight, head.bias))


def _nll(
    products: Products, head: LMHead, hidden: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses ``[T]`` and ``d loss / d (h @ weight.T + bias)`` ``[T, V]`` of each position."""
    z = _logits(products, head, hidden)
    chosen = z.gather(1, labels[:, None])
    chosen = chosen if not smoothing else smoothed(chosen, z.mean(1, keepdim=True), smoothing)
    slope = head.slope(z)
    # logsumexp in place: torch's needs a second tensor of this size, and computes each exponential twice
    top = z.amax(-1, keepdim=True)
    gradient = z.sub_(top).exp_()
    total = gradient.sum(-1, keepdim=True)
    loss = (top + total.log() - chosen)[:, 0]
    gradient.div_(total)
    if smoothing:
        gradient.sub_(smoothing / gradient.shape[1])
    gradient.scatter_add_(1, labels[:, None], torch.full_like(gradient[:, :1], smoothing - 1))
    if slope is not None:
        gradient.mul_(slope)
    return loss, gradient.mul_(head.scale) if head.scale != 1.0 else gradient


def smoothed(chosen: torch.Tensor, mean: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The labels' logits, smoothed with the mean of all logits."""
    return chosen + smoothing * (mean - chosen)


def empty_losses(hidden: torch.Tensor) -> torch.Tensor:
    """An empty tensor for the losses of hidden states ``[T, H]``: float32, or float64 where these are."""
    return hidden.new_empty(len(hidden), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)


def _chunks(head: LMHead, count: int) -> list[slice]:
    rows = max(16, CHUNK_BYTES // (4 * head.weight.shape[0]))
    return [slice(start, start + rows) for start in range(0, count, rows)]


class _Gradients:
    """Accumulates the chunks' gradients of hidden states, weight and bias."""

    def __init__(self, products: Products, head: LMHead, hidden: torch.Tensor, wanted: tuple[bool, bool, bool]) -> None:
        accumulate = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.products, self.head = products, head
        self.hidden = torch.zeros_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(head.weight, dtype=accumulate) if wanted[1] else None
        self.bias = torch.zeros_like(head.bias, dtype=accumulate) if wanted[2] and head.bias is not None else None

    def add(self, rows: slice, hidden: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds one chunk: hidden states ``[t, H]`` and the gradient of their projections ``[t, V]``."""
        weight = self.head.weight
        if self.bias is not None:
            self.bias += gradient.sum(0)
        gradient = gradient.to(weight.dtype)
        if self.hidden is not None:
            self.hidden[rows] = self.products.linear_backward_input(gradient, weight).to(self.hidden.dtype)
        if self.weight is not None:
            if self.weight.dtype == weight.dtype:  # in place: writing a second tensor of the head's size takes as long
                # not addmm_, which torch's FLOP counter does not count
                torch.addmm(self.weight, gradient.T, hidden.to(weight.dtype), out=self.weight)
            else:
                self.weight += gradient.T @ hidden.to(weight.dtype)

    def scaled(self, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The three gradients times a scalar, each in the dtype of its tensor."""
        found = (self.hidden, self.weight, self.bias)
        like = (self.hidden, self.head.weight, self.head.bias)
        return tuple(
            None if gradient is None else (gradient * factor.to(gradient.dtype)).to(tensor.dtype)
            for gradient, tensor in zip(found, like, strict=True)
        )


class _WeightedNLL(Function):
    """``sum(weights * nll)``; the forward pass computes all gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        weights: torch.Tensor,
        options: tuple[Products, float, float | None, bool, float],
    ) -> torch.Tensor:
        products, scale, softcap, differentiate, smoothing = options
        head = LMHead(weight, bias, scale, softcap)
        state, weights_too, bias_too = (differentiate and needed for needed in ctx.needs_input_grad[:3])
        wanted = (state, weights_too, bias_too)
        gradients = _Gradients(products, head, hidden, wanted)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for rows in _chunks(head, len(labels)):
            loss, gradient = _nll(products, head, hidden[rows], labels[rows], smoothing)
            total += (loss * weights[rows]).sum()
            if any(wanted):
                gradients.add(rows, hidden[rows], gradient.mul_(weights[rows, None]))
        ctx.gradients = gradients
        return total if hidden.dtype == torch.float64 else total.float()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*ctx.gradients.scaled(grad), None, None, None)


class _TokenNLL(Function):
    """``nll`` of each position; the backward pass recomputes chunks for the gradient of a trained head."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        options: tuple[Products, float, float | None, bool],
    ) -> torch.Tensor:
        products, scale, softcap, differentiate = options
        head = LMHead(weight, bias, scale, softcap)
        gradients = _Gradients(products, head, hidden, (differentiate and ctx.needs_input_grad[0], False, False))
        losses = empty_losses(hidden)
        for rows in _chunks(head, len(labels)):
            losses[rows], gradient = _nll(products, head, hidden[rows], labels[rows])
            if gradients.hidden is not None:
                gradients.add(rows, hidden[rows], gradient)
        ctx.save_for_backward(hidden, weight, bias, labels, gradients.hidden)
        ctx.options = options
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, labels, unit = ctx.saved_tensors
        products, scale, softcap, _ = ctx.options
        head = LMHead(weight, bias, scale, softcap)
        of_head = head_gradients(products, hidden, head, labels, grad, ctx.needs_input_grad[1:3])
        hidden_gradient = None if unit is None else (unit * grad[:, None]).to(hidden.dtype)
        return hidden_gradient, *of_head, None, None


def head_gradients(
    products: Products,
    hidden: torch.Tensor,
    head: LMHead,
    labels: torch.Tensor,
    grad: torch.Tensor,
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of ``sum(grad * nll)`` by weight and bias of a trained head, by chunks.

    Args:
        products: the matrix products.
        hidden: ``[T, H]``.
        head: the head.
        labels: ``[T]``.
        grad: ``[T]``.
        wanted: which of both; the other one is None.
    """
    gradients = _Gradients(products, head, hidden, (False, *wanted))
    if gradients.weight is not None or gradients.bias is not None:
        for rows in _chunks(head, len(labels)):
            _, gradient = _nll(products, head, hidden[rows], labels[rows])
            gradients.add(rows, hidden[rows], gradient.mul_(grad[rows, None]))
    _, of_weight, of_bias = gradients.scaled(torch.ones((), device=grad.device))
    return of_weight, of_bias


def _kernel(kernels: Sequence[LinearCrossEntropy], hidden: torch.Tensor, head: LMHead) -> LinearCrossEntropy:
    return next((kernel for kernel in kernels if kernel.supports(hidden, head)), CHUNKED)


def weighted_nll(
    hidden: torch.Tensor,
    head: LMHead,
    labels: torch.Tensor,
    weights: torch.Tensor,
    smoothing: float = 0.0,
    *,
    kernels: Sequence[LinearCrossEntropy] = (),
) -> torch.Tensor:
    """Weighted sum of the labels' negative log-likelihoods.

    Args:
        hidden: ``[T, H]``, the decoder's output at the positions that predict the labels.
        head: the vocabulary head.
        labels: ``[T]`` token ids.
        weights: ``[T]``.
        smoothing: label smoothing.
        kernels: a backend's, in order of preference; plain torch where none of them supports this.

    Returns:
        A scalar, float32 (float64 where the hidden states are); 0 with zero gradients for T = 0.
    """
    return _kernel(kernels, hidden, head).weighted_nll(hidden, head, labels, weights, smoothing)


def nll_and_hits(
    hidden: torch.Tensor,
    head: LMHead,
    labels: torch.Tensor,
    smoothing: float = 0.0,
    *,
    kernels: Sequence[LinearCrossEntropy] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses ``[T]``, and whether each label is the most likely token, bool ``[T]``; without gradients.

    Arguments as in `weighted_nll`. Of equally likely tokens the first one counts, as in argmax.
    """
    return _kernel(kernels, hidden, head).nll_and_hits(hidden, head, labels, smoothing)


def token_logps(
    hidden: torch.Tensor, head: LMHead, labels: torch.Tensor, *, kernels: Sequence[LinearCrossEntropy] = ()
) -> torch.Tensor:
    """Log-probabilities ``[T]`` of the labels; arguments as `weighted_nll`."""
    return _kernel(kernels, hidden, head).token_logps(hidden, head, labels)
