"""MatmulChoice by MKL or oneDNN: equal numbers, one choice per machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ft_plugins.backends.cpu import attention, matmul, matmul_autotune
from ft_plugins.backends.cpu.matmul import MatmulChoice
from ft_plugins.backends.cpu.runtime import CpuRuntime
from ftcore.utils.content_store import write_folder

ONEDNN = MatmulChoice(forward=True, backward=True)


@pytest.fixture(autouse=True)
def _of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "SMALL", 0)


@pytest.mark.parametrize("choice", [MatmulChoice(), ONEDNN])
def test_both_are_the_formula(choice: MatmulChoice) -> None:
    torch.manual_seed(0)
    x, weight, bias, gradient = torch.randn(2, 37, 24), torch.randn(40, 24), torch.randn(40), torch.randn(74, 40)
    total = torch.randn(74, 24)
    expected = total.double() + gradient.double() @ weight.double()
    with matmul.choice_scope(choice):
        out, into = matmul.linear_forward(x, weight, bias), matmul.linear_backward_input(gradient, weight)
        matmul.add_linear_backward_input(total, gradient, weight)
    assert torch.allclose(out.double(), x.double() @ weight.double().T + bias.double(), atol=1e-5)
    assert torch.allclose(into.double(), gradient.double() @ weight.double(), atol=1e-4)
    assert torch.allclose(total.double(), expected, atol=1e-4)


@pytest.mark.parametrize("choice", [MatmulChoice(), ONEDNN])
def test_products_of_adapters_are_the_formula(choice: MatmulChoice) -> None:
    """Of a part of what several layers share, which is not contiguous."""
    torch.manual_seed(0)
    low, b, gradient = torch.randn(37, 24).split(8, 1)[1], torch.randn(40, 8), torch.randn(37, 40)
    total = gradient.clone()
    expected = total.double() + 0.5 * low.double() @ b.double().T
    with matmul.choice_scope(choice):
        assert matmul.add_linear_forward(total, low, b, 0.5) is total
        of_b = matmul.linear_backward_weight(low, gradient)
    assert torch.allclose(total.double(), expected, atol=1e-5)
    assert torch.allclose(of_b.double(), low.double().T @ gradient.double(), atol=1e-4)


def test_onednn_without_memory_leaves_it_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not know stays an error: ``could not create a primitive descriptor for ...``."""
    x, weight = torch.randn(3, 4), torch.randn(2, 4)

    def fails(*_: Any) -> Any:
        raise RuntimeError(said)

    monkeypatch.setattr(matmul, "onednn", lambda: fails)
    with matmul.choice_scope(ONEDNN):
        said = "could not create a primitive"
        assert torch.equal(matmul.linear_forward(x, weight), x @ weight.T)
        said = "could not create a primitive descriptor for a matmul"
        with pytest.raises(RuntimeError, match="descriptor"):
            matmul.linear_forward(x, weight)


def test_what_needs_gradients_or_other_dtypes_is_torchs_own() -> None:
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(3, 8)
    with matmul.choice_scope(ONEDNN):
        matmul.linear_forward(x, weight).sum().backward()
        assert torch.equal(x.grad, weight.sum(0).expand(5, 8))
        assert matmul.linear_forward(x.detach().double(), weight.double()).dtype == torch.float64
        assert matmul.linear_forward(torch.empty(0, 8), weight).shape == (0, 3)
        with torch.autocast("cpu", torch.bfloat16):
            assert matmul.linear_forward(x.detach(), weight).dtype == torch.bfloat16


def test_small_ones_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN takes 15 us for any product."""
    monkeypatch.setattr(matmul, "SMALL", 16 << 20)
    with matmul.choice_scope(ONEDNN), torch.no_grad():
        assert not matmul._served(torch.ones(64, 32), torch.ones(48, 32))
        assert matmul._served(torch.ones(2, 512, 128), torch.ones(64, 128))


def test_the_choice_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(matmul_autotune, "_measured", lambda: asked.append(1) or ONEDNN)
    with matmul.choice_scope(MatmulChoice()):
        matmul_autotune.autotune()
        assert matmul.get_choice() == ONEDNN
        matmul.set_choice(MatmulChoice())
        matmul_autotune.autotune()
        assert (matmul.get_choice(), asked) == (ONEDNN, [1])
        (file,) = (tmp_path / "v2" / "matmul-choice").glob("*/manifest.json")
        file.write_text("{")
        matmul_autotune.autotune()
        assert asked == [1, 1]
        CpuRuntime().prepare({"forward": True, "backward": False, "attention": False}, locking=True)  # a checkpoint's
        assert matmul.get_choice() == MatmulChoice(forward=True)
        assert CpuRuntime().numerics_key() == ["cpu", {"forward": True, "backward": False, "attention": False}]
    kept = {"forward": True, "backward": True, "attention": False}
    assert json.loads(file.read_text())["content"]["value"] == kept
    with matmul.choice_scope(MatmulChoice()):  # a value that is none of this version's
        write_folder(file.parent, "", {"forward": False, "backward": False})
        matmul_autotune.autotune()
        assert (matmul.get_choice(), asked) == (ONEDNN, [1, 1, 1])


def test_measuring_takes_less_than_25_gigaflops(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a first run waits for; `benchmarks/promises.py` measures the seconds."""
    operations: list[float] = []

    def counting(own: Any) -> Any:
        def compute(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            operations.append(2.0 * x.shape[0] * weight.numel())
            return own(x, weight)

        return compute

    monkeypatch.setattr(matmul, "linear_forward", counting(matmul.linear_forward))
    monkeypatch.setattr(matmul, "linear_backward_input", counting(matmul.linear_backward_input))
    monkeypatch.setattr(attention, "available", lambda: False)  # measured only where both others are faster
    assert isinstance(matmul_autotune._measured(), MatmulChoice)
    # more where both are faster by oneDNN: attention by products is then measured too
    products = 2 * 2 * matmul_autotune.TURNS
    assert len(operations) >= products
    assert sum(operations[:products]) < 25e9
