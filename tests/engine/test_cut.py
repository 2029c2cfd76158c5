"""Losses by cut-cross-entropy's kernel: a stand-in with its interface, which computes what its documentation says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from ftcore.engine import cut

Loss = Callable[..., torch.Tensor]


def exact(
    e: torch.Tensor,
    c: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    softcap: float | None = None,
    reduction: str = "mean",
    filter_eps: float | str | None = "auto",
    accum_e_fp32: bool = False,
    accum_c_fp32: bool = False,
) -> torch.Tensor:
    assert (reduction, filter_eps, accum_e_fp32, accum_c_fp32) == ("none", None, True, True)
    assert e.dtype == c.dtype
    logits = functional.linear(e, c, bias)
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    return functional.cross_entropy(logits, targets, reduction=reduction)


def first_version(e: Any, c: Any, targets: Any, *, softcap: Any = None, reduction: str = "mean") -> torch.Tensor:
    raise AssertionError("it takes none of what is asked")


def older_gpu(*args: Any, **options: Any) -> torch.Tensor:
    raise RuntimeError("Cut Cross Entropy requires an ampere GPU or newer.")


def filtered(e: torch.Tensor, c: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """The right losses, and gradients of which a tenth is left out."""
    return exact(e, c, *args, **options) * 0.9 + exact(e.detach(), c.detach(), *args, **options) * 0.1


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Loss], list[int]]:
    """``installed(function)``: that is the package's, and there is a GPU; how many losses each call was for."""

    def make(function: Loss) -> list[int]:
        asked: list[int] = []

        def counted(e: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            asked.append(len(e))
            return function(e, *args, **options)

        monkeypatch.setitem(sys.modules, "cut_cross_entropy", SimpleNamespace(linear_cross_entropy=counted))
        monkeypatch.setattr(cut, "_on_cuda", lambda scorer: True)
        return asked

    return make


def step(trainer: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    trainer.model.zero_grad()
    loss = trainer.loss_sum(batch)
    loss.backward()
    return loss.detach(), [tensor.grad.clone() for tensor in trainer.model.parameters() if tensor.grad is not None]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_step_is_ours(method: str, installed: Any, trainer_of: Any, tokens: Any) -> None:
    rows = tokens([9, 30, 4, 21])
    loss, gradients = step(trainer_of(rows, finetuning_type=method))
    asked = installed(exact)
    trainer = trainer_of(rows, finetuning_type=method)
    assert asked == [cut._TRIED]
    own_loss, own = step(trainer)
    labels = len(trainer.data_collator([rows[row] for row in range(4)])["positions"])
    assert asked == [cut._TRIED, labels]
    assert own_loss == pytest.approx(loss.item(), rel=1e-6)
    assert len(own) == len(gradients)
    assert all((one - other).norm() <= 1e-5 * other.norm() for one, other in zip(own, gradients, strict=True))


def test_log_probabilities_go_by_it_too(installed: Any, trainer_of: Any, tokens: Any) -> None:
    rows = tokens([9, 30, 4, 21])
    expected = trainer_of(rows)
    batch = expected.data_collator([rows[row] for row in range(4)])
    asked = installed(exact)
    trainer = trainer_of(rows)
    found = trainer.scorer.logps(batch)
    assert len(asked) == 2
    assert torch.allclose(found, expected.scorer.logps(batch), atol=1e-5)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (filtered, "it does not give this head's losses and gradients"),
        (first_version, "TypeError: "),
        (older_gpu, "RuntimeError: Cut Cross Entropy requires an ampere GPU or newer."),
    ],
)
def test_one_that_does_not_serve_is_not_used(
    function: Loss, why: str, installed: Any, trainer_of: Any, tokens: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = tokens([9, 30, 4, 21])
    expected = step(trainer_of(rows))
    asked = installed(function)
    trainer = trainer_of(rows)
    assert any(f"cut-cross-entropy is not used: {why}" in line for line in caplog.messages)
    assert asked == [cut._TRIED]
    assert trainer.scorer.kernel is None
    assert torch.equal(step(trainer)[0], expected[0])
    assert len(asked) == 1


def test_a_cpu_never_asks_for_it(installed: Any, monkeypatch: pytest.MonkeyPatch, trainer_of: Any, tokens: Any) -> None:
    honest = cut._on_cuda
    asked = installed(exact)
    monkeypatch.setattr(cut, "_on_cuda", honest)
    assert trainer_of(tokens([9, 30])).scorer.kernel is None
    assert not asked
