"""The vocabulary projection on trained positions only, in chunks, fused with the loss.

Nothing of size ``[positions, vocabulary]`` outlives a chunk: the gradient of the hidden states is made in the forward
pass, while the chunk's probabilities are at hand (for a frozen head this saves the second projection that
recomputation costs). Losses are ``logsumexp(z) - z[label]`` in float32, 7e-8 from float64 on SmolLM2's logits where
``cross_entropy`` on log_softmax was 5.6e-6 off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function

from ftcore.engine import products

CHUNK_BYTES = 64 << 20
"""Size of one chunk's float32 logits; 340 positions of a 49,152-token vocabulary."""


@dataclass(frozen=True, slots=True)
class Head:
    """How a model makes logits of hidden states: ``cap(scale * (h @ weight.T + bias))``.

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
        z = products.through(hidden.to(self.weight.dtype), self.weight, self.bias)
        z = z if z.dtype == torch.float64 else z.float()
        if self.scale != 1.0:
            z = z * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def nll(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses ``[T]`` and ``d loss / d (h @ weight.T + bias)`` ``[T, V]`` of each position."""
        z = self.logits(hidden)
        chosen = z.gather(1, labels[:, None])
        slope = None if self.softcap is None else 1 - (z / self.softcap).square()
        # logsumexp in place: torch's own takes a second tensor of this size and each exponential twice
        top = z.amax(-1, keepdim=True)
        gradient = z.sub_(top).exp_()
        total = gradient.sum(-1, keepdim=True)
        loss = (top + total.log() - chosen)[:, 0]
        gradient.div_(total)
        gradient.scatter_add_(1, labels[:, None], -torch.ones_like(gradient[:, :1]))
        if slope is not None:
            gradient.mul_(slope)
        return loss, gradient.mul_(self.scale) if self.scale != 1.0 else gradient

    @property
    def rows(self) -> int:
        """Positions per chunk."""
        return max(16, CHUNK_BYTES // (4 * self.weight.shape[0]))


class _Gradients:
    """Sums up what the chunks contribute to the gradients of hidden states, weight and bias."""

    def __init__(self, head: Head, hidden: torch.Tensor, wanted: tuple[bool, bool, bool]) -> None:
        accumulate = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.head = head
        self.hidden = torch.zeros_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(head.weight, dtype=accumulate) if wanted[1] else None
        self.bias = torch.zeros_like(head.bias, dtype=accumulate) if wanted[2] and head.bias is not None else None

    def add(self, rows: slice, hidden: torch.Tensor, gradient: torch.Tensor) -> None:
        """One chunk: hidden states ``[t, H]`` and the gradient of their projections ``[t, V]``."""
        weight = self.head.weight
        if self.bias is not None:
            self.bias += gradient.sum(0)
        gradient = gradient.to(weight.dtype)
        if self.hidden is not None:
            self.hidden[rows] = products.back(gradient, weight).to(self.hidden.dtype)
        if self.weight is not None:
            if self.weight.dtype == weight.dtype:  # in place: a second tensor of the head's size takes as long
                products.add(self.weight, gradient.T, hidden.to(weight.dtype))
            else:
                self.weight += gradient.T @ hidden.to(weight.dtype)

    def scaled(self, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The three gradients, times a scalar, each in its tensor's dtype."""
        found = (self.hidden, self.weight, self.bias)
        like = (self.hidden, self.head.weight, self.head.bias)
        return tuple(
            None if gradient is None else (gradient * factor.to(gradient.dtype)).to(tensor.dtype)
            for gradient, tensor in zip(found, like, strict=True)
        )


def _chunks(head: Head, count: int) -> list[slice]:
    return [slice(start, start + head.rows) for start in range(0, count, head.rows)]


class _WeightedNLL(Function):
    """``sum(weights * nll)``, with all gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        weights: torch.Tensor,
        options: tuple[float, float | None, bool],
    ) -> torch.Tensor:
        scale, softcap, differentiate = options
        head = Head(weight, bias, scale, softcap)
        state, weights_too, bias_too = (differentiate and needed for needed in ctx.needs_input_grad[:3])
        wanted = (state, weights_too, bias_too)
        gradients = _Gradients(head, hidden, wanted)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for rows in _chunks(head, len(labels)):
            loss, gradient = head.nll(hidden[rows], labels[rows])
            total += (loss * weights[rows]).sum()
            if any(wanted):
                gradients.add(rows, hidden[rows], gradient.mul_(weights[rows, None]))
        ctx.gradients = gradients
        return total if hidden.dtype == torch.float64 else total.float()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*ctx.gradients.scaled(grad), None, None, None)


class _TokenNLL(Function):
    """``nll`` of each position; a trained head's gradient is recomputed chunk by chunk in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        options: tuple[float, float | None, bool],
    ) -> torch.Tensor:
        scale, softcap, differentiate = options
        head = Head(weight, bias, scale, softcap)
        gradients = _Gradients(head, hidden, (differentiate and ctx.needs_input_grad[0], False, False))
        losses = hidden.new_empty(len(labels), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        for rows in _chunks(head, len(labels)):
            losses[rows], gradient = head.nll(hidden[rows], labels[rows])
            if gradients.hidden is not None:
                gradients.add(rows, hidden[rows], gradient)
        ctx.save_for_backward(hidden, weight, bias, labels, gradients.hidden)
        ctx.options = options
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, labels, unit = ctx.saved_tensors
        head = Head(weight, bias, *ctx.options[:2])
        gradients = _Gradients(head, hidden, (False, *ctx.needs_input_grad[1:3]))
        if gradients.weight is not None or gradients.bias is not None:
            for rows in _chunks(head, len(labels)):
                gradients.add(rows, hidden[rows], head.nll(hidden[rows], labels[rows])[1].mul_(grad[rows, None]))
        _, weight_gradient, bias_gradient = gradients.scaled(torch.ones((), device=grad.device))
        hidden_gradient = None if unit is None else (unit * grad[:, None]).to(hidden.dtype)
        return hidden_gradient, weight_gradient, bias_gradient, None, None


def weighted_nll(hidden: torch.Tensor, head: Head, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the labels' negative log-likelihoods.

    Args:
        hidden: ``[T, H]``, the decoder's output at the positions that predict the labels.
        labels: ``[T]``, all of them tokens.
        weights: ``[T]``.

    Returns:
        A scalar, float32 (float64 where the hidden states are); 0 with a gradient of zeros where T is 0.
    """
    options = (head.scale, head.softcap, torch.is_grad_enabled())
    return _WeightedNLL.apply(hidden, head.weight, head.bias, labels, weights, options)


def nll_and_hits(hidden: torch.Tensor, head: Head, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses ``[T]``, and whether each label is the likeliest token, bool ``[T]``; without gradients.

    Arguments as `weighted_nll`. Of several likeliest tokens the first one counts, as argmax has it.
    """
    losses = hidden.new_empty(len(labels), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
    hits = torch.empty(len(labels), dtype=torch.bool, device=hidden.device)
    with torch.no_grad():
        for rows in _chunks(head, len(labels)):
            z = head.logits(hidden[rows])
            losses[rows] = z.logsumexp(-1) - z.gather(1, labels[rows, None])[:, 0]
            hits[rows] = z.argmax(-1) == labels[rows]
    return losses, hits


def token_logps(hidden: torch.Tensor, head: Head, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities ``[T]`` of the labels; arguments as `weighted_nll`."""
    options = (head.scale, head.softcap, torch.is_grad_enabled())
    return -_TokenNLL.apply(hidden, head.weight, head.bias, labels, options)
