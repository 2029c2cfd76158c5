"""The fused head: values by hand, gradients by gradcheck."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

from ftcore.engine import head as module
from ftcore.engine.head import Head, token_logps, weighted_nll


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``parts(count, bias)``: hidden, weight, bias, labels, weights in float64; two chunks from 17 positions on."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)

    def make(count: int, bias: bool) -> tuple[Any, ...]:
        torch.manual_seed(0)
        hidden = torch.randn(count, 4, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
        offset = torch.randn(7, dtype=torch.float64, requires_grad=True) if bias else None
        return hidden, weight, offset, torch.randint(0, 7, (count,)), torch.rand(count, dtype=torch.float64)

    return make


@pytest.mark.parametrize("count", [0, 1, 5, 20])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, 2.0)])
def test_gradcheck(parts: Any, count: int, bias: bool, scale: float, softcap: float | None) -> None:
    hidden, weight, offset, labels, weights = parts(count, bias)

    def loss(hidden: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        return weighted_nll(hidden, Head(weight, offset, scale, softcap), labels, weights)

    def logps(hidden: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        return token_logps(hidden, Head(weight, offset, scale, softcap), labels)

    assert gradcheck(loss, (hidden, weight, offset))
    assert gradcheck(logps, (hidden, weight, offset))


def test_gradcheck_of_hidden_states_that_are_not_contiguous(parts: Any) -> None:
    _, weight, _, _, _ = parts(0, False)
    hidden = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 0, 6, 3, 3, 2])
    assert gradcheck(lambda h: weighted_nll(h.T, Head(weight.detach()), labels, labels.double()), (hidden,))
    assert gradcheck(lambda h: token_logps(h.T, Head(weight.detach()), labels), (hidden,))


def test_values_are_those_of_cross_entropy(parts: Any) -> None:
    hidden, weight, offset, labels, weights = parts(20, True)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T + offset, labels, reduction="none")
    head = Head(weight, offset)
    assert torch.allclose(-token_logps(hidden, head, labels), expected, rtol=1e-12)
    assert torch.allclose(weighted_nll(hidden, head, labels, weights), (expected * weights).sum(), rtol=1e-12)


def test_a_frozen_head_gets_no_gradient(parts: Any) -> None:
    hidden, weight, _, labels, weights = parts(5, False)
    weight.requires_grad_(False)
    weighted_nll(hidden, Head(weight), labels, weights).backward()
    assert weight.grad is None
    assert hidden.grad.shape == (5, 4)


def test_half_precision_sums_in_float32() -> None:
    """bfloat16 logits, float32 losses: within bfloat16's rounding of the logits of the exact value."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 16, dtype=torch.bfloat16), torch.randn(300, 16, dtype=torch.bfloat16)
    labels, weights = torch.randint(0, 300, (50,)), torch.ones(50)
    exact = torch.nn.functional.cross_entropy((hidden.double() @ weight.double().T), labels, reduction="sum")
    found = weighted_nll(hidden, Head(weight), labels, weights)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-3)
