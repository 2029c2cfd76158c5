"""Fused linear cross-entropy: the vocabulary projection and the loss in chunks, on positions with labels only.

No tensor of size ``[positions, vocabulary]`` outlives a chunk. The forward pass computes the gradient of the hidden
states from the chunk's probabilities; with a frozen head this saves the second projection of a recomputation. Losses
are ``logsumexp(z) - z[label]`` in float32. On SmolLM2's logits they differ from float64 by 7e-8, ``cross_entropy`` on
log_softmax by 5.6e-6.

In float32 and float64 on a CPU the vocabulary is processed in tiles too, except for the head's gradient, by an online
softmax as in flash attention (`_VocabTiles`): logits stay in the processor's cache. CPU seconds on one core of a Zen 3,
1,200 positions of 576 numbers, 49,152 tokens, by chunks and by tiles: with the gradient 2.07 and 1.74, without 1.26 and
0.93, with hits 1.49 and 1.04. Where every label is almost certain (mean loss 1e-7) the gradient differs from float64's
by 3e-6 of its length by tiles, and by 0.28 by chunks.

With label smoothing ``e`` a loss is ``(1 - e)`` times the label's loss plus ``e`` times the mean over the vocabulary,
as in transformers' LabelSmoother: ``logsumexp(z) - (1 - e) z[label] - e mean(z)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function

from ftcore.training.kernels import matmul

CHUNK_BYTES = 64 << 20
"""Bytes of one chunk's float32 logits: 340 positions with a vocabulary of 49,152 tokens."""
TILE = (1536, 1024)
"""Positions and tokens of a tile: 6 MB of float32 logits. Relative CPU time with and without the gradient: half as many
positions 1.02 and 1.06, 512 positions by 4,096 tokens 1.03 and 1.08, 256 by 4,096 1.10 and 1.18."""


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

    def logits(self, hidden: torch.Tensor, room: torch.Tensor | None = None) -> torch.Tensor:
        """``[T, H]`` -> ``[T, V]``, in float32 (float64 where the hidden states are); written into ``room`` if
        possible."""
        z = matmul.linear_forward(hidden.to(self.weight.dtype), self.weight, self.bias, room)
        z = z if z.dtype == torch.float64 else z.float()
        if self.scale != 1.0:
            z.mul_(self.scale)
        return z if self.softcap is None else self.softcap * z.div_(self.softcap).tanh_()

    def slope(self, z: torch.Tensor) -> torch.Tensor | None:
        """Derivative of the softcap at logits, ``d z / d (scale * (h @ weight.T + bias))``; None without a softcap."""
        return None if self.softcap is None else 1 - (z / self.softcap).square()

    def part(self, start: int) -> LMHead:
        """The head of the tokens of one tile."""
        tokens = slice(start, start + TILE[1])
        bias = None if self.bias is None else self.bias[tokens]
        return LMHead(self.weight[tokens], bias, self.scale, self.softcap)

    def nll(
        self, hidden: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses ``[T]`` and ``d loss / d (h @ weight.T + bias)`` ``[T, V]`` of each position."""
        z = self.logits(hidden)
        chosen = z.gather(1, labels[:, None])
        chosen = chosen if not smoothing else _smoothed(chosen, z.mean(1, keepdim=True), smoothing)
        slope = self.slope(z)
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
        return loss, gradient.mul_(self.scale) if self.scale != 1.0 else gradient

    @property
    def rows(self) -> int:
        """Positions per chunk."""
        return max(16, CHUNK_BYTES // (4 * self.weight.shape[0]))


class _VocabTiles:
    """An online softmax of some positions, tile by tile.

    The sums exclude the labels' exponentials: for an almost certain label the gradient would otherwise be a small
    difference of large numbers.

    Args:
        hidden: ``[t, H]``.
        labels: ``[t]``.
        gradient: accumulates the gradient of the hidden states, ``[t, H]`` of zeros; None for no gradient.
        ranked: whether to find the most likely tokens.
        smoothing: label smoothing.

    Attributes:
        top: ``[t, 1]``, the largest logits so far.
        others: ``[t, 1]`` float64, the sums of ``exp(z - top)`` of all tokens but the labels.
        chosen: ``[t, 1]``, the labels' logits.
        sums: ``[t, 1]`` float64, sums of all logits, with label smoothing.
        slopes: ``[t, H]``, sums of the head's rows times the softcap's derivatives, with smoothing and softcap.
        likeliest: ``[t]``, the most likely tokens; the first of equal ones.
    """

    def __init__(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        gradient: torch.Tensor | None,
        ranked: bool = False,
        smoothing: float = 0.0,
    ) -> None:
        self.hidden, self.labels, self.gradient = hidden, labels, gradient
        # not -inf: its difference with itself is NaN
        self.top = hidden.new_full((len(labels), 1), torch.finfo(hidden.dtype).min)
        self.others = torch.zeros_like(self.top, dtype=torch.float64)
        self.chosen = torch.zeros_like(self.top)
        self.likeliest = torch.zeros_like(labels) if ranked else None
        self.smoothing = smoothing
        self.sums = torch.zeros_like(self.others) if smoothing else None
        self.slopes: torch.Tensor | None = None

    def take(self, head: LMHead, start: int, room: torch.Tensor) -> None:
        """Adds one tile: the part of the head from token ``start`` on; ``room`` is the buffer of its logits."""
        z = head.logits(self.hidden, room[: len(self.labels) * len(head.weight)].view(len(self.labels), -1))
        here = ((self.labels >= start) & (self.labels < start + len(head.weight))).nonzero()[:, 0]
        places = here, self.labels[here] - start
        self.chosen[here, 0] = z[places]
        slope = None if self.gradient is None else head.slope(z)
        if self.sums is not None:
            self.sums.add_(z.sum(1, keepdim=True))
            if slope is not None:
                self.slopes = torch.zeros_like(self.hidden) if self.slopes is None else self.slopes
                matmul.add_linear_backward_input(self.slopes, slope, head.weight)
        shrunk = self._raise(z, start)
        z.sub_(self.top).exp_()
        z[places] = 0.0
        self.others.mul_(shrunk).add_(z.sum(1, keepdim=True))
        if self.gradient is not None:
            self.gradient.mul_(shrunk)
            matmul.add_linear_backward_input(self.gradient, z if slope is None else z.mul_(slope), head.weight)

    def _raise(self, z: torch.Tensor, start: int) -> torch.Tensor:
        """Updates ``top`` with a tile's largest logits; returns the factor ``[t, 1]`` on the sums so far."""
        if self.likeliest is None:
            largest = z.amax(1, keepdim=True)
        else:
            largest, place = z.max(1, keepdim=True)
            self.likeliest = torch.where(largest > self.top, place + start, self.likeliest[:, None])[:, 0]
        before, self.top = self.top, torch.maximum(self.top, largest)
        return before.sub_(self.top).exp_()

    def end(self, head: LMHead) -> torch.Tensor:
        """The losses ``[t]``, after all tiles; completes the gradient."""
        total = self.others + (self.chosen - self.top).double().exp()
        if self.gradient is not None:
            slope = head.slope(self.chosen)
            of_label = (self.others / total - self.smoothing).to(self.gradient.dtype)
            of_label = of_label if slope is None else of_label.mul_(slope)
            self.gradient.div_(total).sub_(head.weight[self.labels].mul_(of_label))
            if self.smoothing:
                rows = head.weight.sum(0, keepdim=True) if self.slopes is None else self.slopes
                self.gradient.sub_(rows, alpha=self.smoothing / len(head.weight))
            if head.scale != 1.0:
                self.gradient.mul_(head.scale)
        chosen = self.chosen.double()
        if self.sums is not None:
            chosen = _smoothed(chosen, self.sums / len(head.weight), self.smoothing)
        return (total.log() + (self.top.double() - chosen))[:, 0]


def _smoothed(chosen: torch.Tensor, mean: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The labels' logits, smoothed with the mean of all logits."""
    return chosen + smoothing * (mean - chosen)


def _tiled(head: LMHead, hidden: torch.Tensor) -> bool:
    """Whether to use tiles: half precision would round the sums between tiles, and a GPU gains nothing from them."""
    return matmul.exact(hidden, head.weight, *([] if head.bias is None else [head.bias]))


def _by_tiles(
    head: LMHead,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    losses: torch.Tensor,
    gradient: torch.Tensor | None = None,
    hits: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> None:
    """Fills in losses ``[T]``, their gradients ``[T, H]`` and whether the labels are the most likely tokens ``[T]``."""
    count, vocabulary = len(labels), len(head.weight)
    chunks = -(-count // TILE[0])
    size = -(-count // max(1, chunks))  # equal sizes: products of few rows are slow
    room = hidden.new_empty(size * min(TILE[1], vocabulary))
    for rows in (slice(number * size, (number + 1) * size) for number in range(chunks)):
        own = None if gradient is None else gradient[rows]
        tiles = _VocabTiles(hidden[rows], labels[rows], own, hits is not None, smoothing)
        for start in range(0, vocabulary, TILE[1]):
            tiles.take(head.part(start), start, room)
        losses[rows] = tiles.end(head)
        if hits is not None:
            hits[rows] = tiles.likeliest == labels[rows]


class _Gradients:
    """Accumulates the chunks' gradients of hidden states, weight and bias."""

    def __init__(self, head: LMHead, hidden: torch.Tensor, wanted: tuple[bool, bool, bool]) -> None:
        accumulate = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.head = head
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
            self.hidden[rows] = matmul.linear_backward_input(gradient, weight).to(self.hidden.dtype)
        if self.weight is not None:
            if self.weight.dtype == weight.dtype:  # in place: writing a second tensor of the head's size takes as long
                matmul.add(self.weight, gradient.T, hidden.to(weight.dtype))
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


def _losses(hidden: torch.Tensor) -> torch.Tensor:
    """An empty tensor for the losses of hidden states ``[T, H]``."""
    return hidden.new_empty(len(hidden), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)


def _chunks(head: LMHead, count: int) -> list[slice]:
    return [slice(start, start + head.rows) for start in range(0, count, head.rows)]


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
        options: tuple[float, float | None, bool, float],
    ) -> torch.Tensor:
        scale, softcap, differentiate, smoothing = options
        head = LMHead(weight, bias, scale, softcap)
        state, weights_too, bias_too = (differentiate and needed for needed in ctx.needs_input_grad[:3])
        wanted = (state, weights_too, bias_too)
        gradients = _Gradients(head, hidden, wanted)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        if not (weights_too or bias_too) and _tiled(head, hidden):
            losses = _losses(hidden)
            _by_tiles(head, hidden, labels, losses, gradients.hidden, smoothing=smoothing)
            total += (losses * weights).sum()
            if gradients.hidden is not None:
                gradients.hidden.mul_(weights[:, None])
        else:
            for rows in _chunks(head, len(labels)):
                loss, gradient = head.nll(hidden[rows], labels[rows], smoothing)
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
        options: tuple[float, float | None, bool],
    ) -> torch.Tensor:
        scale, softcap, differentiate = options
        head = LMHead(weight, bias, scale, softcap)
        gradients = _Gradients(head, hidden, (differentiate and ctx.needs_input_grad[0], False, False))
        losses = _losses(hidden)
        if _tiled(head, hidden):
            _by_tiles(head, hidden, labels, losses, gradients.hidden)
        else:
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
        head = LMHead(weight, bias, *ctx.options[:2])
        gradients = _Gradients(head, hidden, (False, *ctx.needs_input_grad[1:3]))
        if gradients.weight is not None or gradients.bias is not None:
            for rows in _chunks(head, len(labels)):
                gradients.add(rows, hidden[rows], head.nll(hidden[rows], labels[rows])[1].mul_(grad[rows, None]))
        _, weight_gradient, bias_gradient = gradients.scaled(torch.ones((), device=grad.device))
        hidden_gradient = None if unit is None else (unit * grad[:, None]).to(hidden.dtype)
        return hidden_gradient, weight_gradient, bias_gradient, None, None


def weighted_nll(
    hidden: torch.Tensor, head: LMHead, labels: torch.Tensor, weights: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """Weighted sum of the labels' negative log-likelihoods.

    Args:
        hidden: ``[T, H]``, the decoder's output at the positions that predict the labels.
        labels: ``[T]`` token ids.
        weights: ``[T]``.
        smoothing: label smoothing.

    Returns:
        A scalar, float32 (float64 where the hidden states are); 0 with zero gradients for T = 0.
    """
    options = (head.scale, head.softcap, torch.is_grad_enabled(), smoothing)
    return _WeightedNLL.apply(hidden, head.weight, head.bias, labels, weights, options)


def nll_and_hits(
    hidden: torch.Tensor, head: LMHead, labels: torch.Tensor, smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses ``[T]``, and whether each label is the most likely token, bool ``[T]``; without gradients.

    Arguments as in `weighted_nll`. Of equally likely tokens the first one counts, as in argmax.
    """
    losses = _losses(hidden)
    hits = torch.empty(len(labels), dtype=torch.bool, device=hidden.device)
    with torch.no_grad():
        if _tiled(head, hidden):
            _by_tiles(head, hidden, labels, losses, hits=hits, smoothing=smoothing)
            return losses, hits
        for rows in _chunks(head, len(labels)):
            z = head.logits(hidden[rows])
            chosen = z.gather(1, labels[rows, None])[:, 0]
            losses[rows] = z.logsumexp(-1) - (_smoothed(chosen, z.mean(1), smoothing) if smoothing else chosen)
            hits[rows] = z.argmax(-1) == labels[rows]
    return losses, hits


def token_logps(hidden: torch.Tensor, head: LMHead, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities ``[T]`` of the labels; arguments as `weighted_nll`."""
    options = (head.scale, head.softcap, torch.is_grad_enabled())
    return -_TokenNLL.apply(hidden, head.weight, head.bias, labels, options)
