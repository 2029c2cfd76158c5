"""Modules that keep less for the backward pass: equal numbers, less memory, and nothing that is not understood."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from ft_plugins.backends.cpu import fused_layers, matmul, recompute
from ft_plugins.backends.cpu.fused_layers import (
    Activation,
    FusedLinear,
    FusedRMSNorm,
    FusedSwiGLU,
    _Gated,
    _Linear,
    _Norm,
    fuse_layers,
)
from ft_plugins.backends.cpu.matmul import MatmulChoice
from ftcore.training.model_transforms.recomputation import enable_recomputation

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = torch.arange(3, 40)[None]
# norms, gates and linear layers that are taken
FAMILIES = {
    "llama": (5, 2, 14),
    "qwen2": (5, 2, 14),
    "qwen3": (9, 2, 14),
    "gemma2": (9, 2, 14),
    "gemma3_text": (13, 2, 14),
    "olmo2": (9, 2, 14),
    "phi3": (5, 0, 8),
    "glm": (5, 0, 12),
    "mixtral": (5, 0, 8),
}


def model_of(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    more = {"partial_rotary_factor": 1.0} if kind == "phi3" else {}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SMALL | more)).to(dtype)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                tensor.add_(torch.randn_like(tensor), alpha=0.1)
    return model.train()


def step(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("frozen", [False, True])
def test_loss_and_gradients_are_the_models_own(kind: str, frozen: bool) -> None:
    """To float32's rounding, all weights trained or none but the embedding's and attention's output."""
    model = model_of(kind)
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(not frozen or "embed" in name or "o_proj" in name)
    loss, gradients = step(model)
    assert tuple(fuse_layers(model).values()) == FAMILIES[kind]
    assert tuple(fuse_layers(model).values()) == (0, 0, 0)
    own_loss, own = step(model)
    assert own_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (own[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-9, name


def test_recomputation_of_layers_goes_with_it() -> None:
    model = model_of("llama")
    loss, gradients = step(model)
    fuse_layers(model)
    enable_recomputation(model)
    own_loss, own = step(model)
    assert own_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert all((own[name] - one).norm() <= 2e-5 * one.norm() for name, one in gradients.items())


@pytest.mark.parametrize(
    ("act", "silu"),
    [(nn.SiLU(), True), (nn.SiLU(), False), (nn.GELU(approximate="tanh"), False), (nn.Sigmoid(), False)],
)
def test_gradcheck_of_the_gate(act: nn.Module, silu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of two rows."""
    monkeypatch.setattr(fused_layers, "BLOCK", 8)
    torch.manual_seed(0)
    gate, up = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda gate, up: _Gated.apply(gate, up, Activation(act, silu)), (gate, up))


def test_silus_own_kernels_give_the_same_bits() -> None:
    torch.manual_seed(0)
    gate, up, gradient = 10 * torch.randn(7, 333), torch.randn(7, 333), torch.randn(7, 333)
    found = []
    for silu in (False, True):
        act, results = Activation(nn.functional.silu, silu), [torch.empty_like(gate) for _ in range(3)]
        act.into(gate, up, results[0])
        act.back(gate, up, gradient, *results[1:])
        found.append(results)
    assert all(torch.equal(*both) for both in zip(*found, strict=True))


@pytest.mark.parametrize(("kind", "silu"), [("llama", True), ("gemma", False)])
def test_what_is_silu_is_told(kind: str, silu: bool) -> None:
    model = model_of(kind)
    fuse_layers(model)
    gates = [one for one in model.modules() if isinstance(one, FusedSwiGLU)]
    assert gates
    assert {one._silu for one in gates} == {silu}


def test_gradcheck_of_norm_and_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of two rows, and with an input that is made again."""
    monkeypatch.setattr(fused_layers, "BLOCK", 12)
    torch.manual_seed(0)
    shapes = ((5, 6), (6,), (3, 6), (3,))
    x, weight, matrix, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    assert torch.autograd.gradcheck(lambda x, weight: _Norm.apply(x, weight, 1e-3)[0], (x, weight))

    def both(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        doubled = recompute.tag_recompute(2 * x, lambda x: 2 * x, x)
        return _Linear.apply(doubled, matrix, bias, recompute.saved_inputs(doubled))

    assert torch.autograd.gradcheck(both, (x, matrix, bias))


def test_what_was_written_to_is_kept_itself() -> None:
    tensor = recompute.tag_recompute(torch.ones(3), lambda x: x, torch.ones(3))
    assert recompute.saved_inputs(tensor).make is not None
    tensor.add_(1)
    assert recompute.saved_inputs(tensor).make is None
    assert torch.equal(recompute.rematerialize(*recompute.saved_inputs(tensor)), torch.full((3,), 2.0))


class Odd(nn.Module):
    """Looks like a gated feed-forward layer and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(4, 4) for _ in range(3))
        self.act_fn = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) + 1  # type: ignore[no-any-return]


class Shifted(nn.Module):
    """Looks like an RMS norm and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(4)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x - x.mean(-1, keepdim=True))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_in_bfloat16_it_is_as_exact_as_the_models_own(kind: str) -> None:
    """Against the same weights in float64."""
    model = model_of(kind, torch.bfloat16)
    _, exact = step(deepcopy(model).double())
    loss, gradients = step(model)
    assert tuple(fuse_layers(model).values()) == FAMILIES[kind]
    own_loss, own = step(model)
    assert own_loss.item() == pytest.approx(loss.item(), rel=5e-3)
    assert own.keys() == gradients.keys()
    sums = [sum((found[name].double() - exact[name]).square().sum() for name in exact) for found in (own, gradients)]
    assert sums[0] <= 1.2 * sums[1]
    for name, one in exact.items():
        mine, theirs = ((found[name].double() - one).norm() / one.norm() for found in (own, gradients))
        assert mine <= 1.5 * theirs + 0.01, name


@pytest.mark.parametrize(("dtype", "linears"), [(torch.float16, 0), (torch.float64, 14)])
def test_what_is_not_understood_stays(dtype: torch.dtype, linears: int) -> None:
    """A layer norm has a bias, an odd layer computes something else; norms of float64 compute in float32."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Odd(), Shifted(), nn.LayerNorm(4)])

        def get_output_embeddings(self) -> None:
            return None

    assert fuse_layers(Model()) == {"norms": 0, "gates": 0, "linears": 3}
    model = model_of("llama", dtype)
    assert fuse_layers(model) == {"norms": 0, "gates": 0, "linears": linears}


def test_under_autocast_a_module_is_its_own() -> None:
    """To the bit, as on any other device."""
    model = model_of("llama")
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = step(model)
        fuse_layers(model)
        own_loss, own = step(model)
    assert torch.equal(own_loss, loss)
    assert all(torch.equal(own[name], one) for name, one in gradients.items())


def test_files_hold_the_same_names_and_the_head_is_left_alone() -> None:
    model = model_of("llama")
    names = list(model.state_dict())
    fuse_layers(model)
    assert list(model.state_dict()) == names
    kinds = [sum(isinstance(one, kind) for one in model.modules()) for kind in (FusedRMSNorm, FusedSwiGLU, FusedLinear)]
    assert kinds == [5, 2, 14]
    assert type(model.lm_head) is nn.Linear


def test_by_onednn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "SMALL", 0)
    model = model_of("llama")
    loss, gradients = step(model)
    fuse_layers(model)
    with matmul.choice_scope(MatmulChoice(forward=True, backward=True)):
        own_loss, own = step(model)
    assert own_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert all((own[name] - one).norm() <= 2e-5 * one.norm() for name, one in gradients.items())
