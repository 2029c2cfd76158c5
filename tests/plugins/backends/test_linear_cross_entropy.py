"""The fused head: values by hand, gradients by gradcheck."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ft_plugins.backends.cpu import linear_cross_entropy as tiled
from ft_plugins.backends.cpu.linear_cross_entropy import TiledLinearCrossEntropy
from ftcore.training.losses import linear_cross_entropy as chunked
from ftcore.training.losses.linear_cross_entropy import CHUNKED, LinearCrossEntropy, LMHead

TILED = TiledLinearCrossEntropy()
both = pytest.mark.parametrize("kernel", [CHUNKED, TILED], ids=lambda kernel: kernel.name)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``parts(count, bias)``: hidden, weight, bias, labels, weights in float64; two chunks from 17 positions on.

    Three tiles of the vocabulary, the last one smaller.
    """
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 1)
    monkeypatch.setattr(tiled, "TILE", (16, 3))

    def make(count: int, bias: bool) -> tuple[Any, ...]:
        torch.manual_seed(0)
        hidden = torch.randn(count, 4, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
        offset = torch.randn(7, dtype=torch.float64, requires_grad=True) if bias else None
        return hidden, weight, offset, torch.randint(0, 7, (count,)), torch.rand(count, dtype=torch.float64)

    return make


@pytest.mark.slow
@both
@pytest.mark.parametrize("count", [0, 1, 5, 20])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, 2.0)])
def test_gradcheck(
    kernel: LinearCrossEntropy, parts: Any, count: int, bias: bool, scale: float, softcap: float | None
) -> None:
    hidden, weight, offset, labels, weights = parts(count, bias)

    def loss(hidden: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        return kernel.weighted_nll(hidden, LMHead(weight, offset, scale, softcap), labels, weights)

    def logps(hidden: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        return kernel.token_logps(hidden, LMHead(weight, offset, scale, softcap), labels)

    assert gradcheck(loss, (hidden, weight, offset))
    assert gradcheck(logps, (hidden, weight, offset))
    frozen = hidden, weight.detach(), None if offset is None else offset.detach()
    assert gradcheck(loss, frozen)
    assert gradcheck(logps, frozen)


@both
def test_gradcheck_of_hidden_states_that_are_not_contiguous(kernel: LinearCrossEntropy, parts: Any) -> None:
    _, weight, _, _, _ = parts(0, False)
    hidden = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 0, 6, 3, 3, 2])
    assert gradcheck(lambda h: kernel.weighted_nll(h.T, LMHead(weight.detach()), labels, labels.double()), (hidden,))
    assert gradcheck(lambda h: kernel.token_logps(h.T, LMHead(weight.detach()), labels), (hidden,))


@both
def test_values_are_those_of_cross_entropy(kernel: LinearCrossEntropy, parts: Any) -> None:
    hidden, weight, offset, labels, weights = parts(20, True)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T + offset, labels, reduction="none")
    head = LMHead(weight, offset)
    assert torch.allclose(-kernel.token_logps(hidden, head, labels), expected, rtol=1e-12)
    assert torch.allclose(kernel.weighted_nll(hidden, head, labels, weights), (expected * weights).sum(), rtol=1e-12)


@both
def test_a_frozen_head_gets_no_gradient(kernel: LinearCrossEntropy, parts: Any) -> None:
    hidden, weight, _, labels, weights = parts(5, False)
    weight.requires_grad_(False)
    kernel.weighted_nll(hidden, LMHead(weight), labels, weights).backward()
    assert weight.grad is None
    assert hidden.grad.shape == (5, 4)


@both
def test_half_precision_sums_in_float32(kernel: LinearCrossEntropy) -> None:
    """bfloat16 logits, float32 losses: within bfloat16's rounding of the logits of the exact value."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 16, dtype=torch.bfloat16), torch.randn(300, 16, dtype=torch.bfloat16)
    labels, weights = torch.randint(0, 300, (50,)), torch.ones(50)
    exact = torch.nn.functional.cross_entropy((hidden.double() @ weight.double().T), labels, reduction="sum")
    found = kernel.weighted_nll(hidden, LMHead(weight), labels, weights)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-3)


@given(data=st.data())
def test_tiles_are_the_formula(data: st.DataObject) -> None:
    """In float32 as exact as its logits: of any sizes, of logits as large as 1e4, of labels that are certain or not."""
    count, vocabulary = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))
    tile = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 41))
    large = data.draw(st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
    scale, softcap = data.draw(st.sampled_from([1.0, 0.25])), data.draw(st.sampled_from([None, 5.0, 30.0]))
    make = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    # eighths, of a diagonal and one more: products are exact, and float32's logits are float64's
    weight = torch.randint(-8, 9, (vocabulary, 6), generator=make).float() / 8
    hidden = (torch.randint(-8, 9, (count, 6), generator=make).float() / 8 * large).round()
    bias = torch.randint(-8, 9, (vocabulary,), generator=make).float() if data.draw(st.booleans()) else None
    labels, weights = torch.randint(0, vocabulary, (count,), generator=make), torch.rand(count, generator=make)

    exact = hidden.double().requires_grad_()
    z = scale * (exact @ weight.double().T + (0 if bias is None else bias.double()))
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    loss = torch.nn.functional.cross_entropy(z, labels, reduction="none")
    (expected,) = torch.autograd.grad((loss * weights).sum(), exact)

    head, own = LMHead(weight, bias, scale, softcap), hidden.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "TILE", tile)
        total = TILED.weighted_nll(own, head, labels, weights)
        (gradient,) = torch.autograd.grad(total, own)
        logps = TILED.token_logps(own, head, labels)
        (of_logps,) = torch.autograd.grad(-(logps * weights).sum(), own)
        with torch.no_grad():
            assert torch.equal(TILED.token_logps(hidden, head, labels), logps)
        losses, hits = TILED.nll_and_hits(hidden, head, labels)
    # tanh near its ends and a sum of logits are float32's, of their own size
    near = {"rtol": 1e-5, "atol": 2e-6 * max(1.0, 0.0 if softcap is None else softcap)}
    assert torch.allclose(losses.double(), loss, **near)
    assert torch.equal(losses, -logps)
    assert torch.allclose(total.double(), (loss * weights).sum(), **near)
    assert torch.equal(gradient, of_logps)
    assert torch.allclose(gradient.double(), expected, **near)
    if softcap is None:
        assert torch.equal(hits, z.argmax(-1) == labels)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_of_labels_that_are_certain_the_gradient_is_exact(softcap: float | None) -> None:
    """A loss of 1e-7 still has a gradient; as one less one float32 has no digit of it."""
    torch.manual_seed(0)
    weight, labels = torch.randn(3000, 64), torch.arange(40) * 70
    hidden = (weight[labels] * 0.4).requires_grad_()
    exact = hidden.detach().double().requires_grad_()
    z = exact @ weight.double().T
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    loss = torch.nn.functional.cross_entropy(z, labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, exact)
    found = -TILED.token_logps(hidden, LMHead(weight, softcap=softcap), labels).sum()
    (gradient,) = torch.autograd.grad(found, hidden)
    assert found.item() == pytest.approx(loss.item(), rel=1e-4)
    assert (gradient.double() - expected).norm() <= 1e-4 * expected.norm()


@both
def test_a_hidden_state_that_is_no_number_shows(kernel: LinearCrossEntropy) -> None:
    hidden = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    logps = kernel.token_logps(hidden, LMHead(torch.randn(5, 2)), torch.tensor([1, 1]))
    assert logps.isnan().tolist() == [True, False]
