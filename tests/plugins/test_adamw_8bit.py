"""The 8-bit AdamW on the CPU: bitsandbytes' numbers, layout and state dict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftcore.config.planner import make_plan
from ftcore.training.checkpointing.safe_serialization import load_pytree, save_pytree

bitsandbytes = pytest.importorskip("bitsandbytes")
pytest.importorskip("numba")

from ft_plugins.optimizers.blockwise import BlockwiseAdamW, _tables  # noqa: E402

PLAIN: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
OPTIONS = PLAIN | {"optim_bits": 8}


def weights(*sizes: int, seed: int = 0) -> list[torch.nn.Parameter]:
    source = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(size, generator=source)) for size in sizes]


def stepped(kind: Any, parameters: list[torch.nn.Parameter], steps: int) -> Any:
    """The optimizer after so many steps on the same noisy gradients."""
    options = PLAIN if kind is torch.optim.AdamW else OPTIONS
    optimizer, source = kind(parameters, **options), torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            scale = torch.logspace(-4, 0, parameter.numel())
            gradient = (parameter.detach() + torch.randn(parameter.shape, generator=source)) * scale
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
    return optimizer


@pytest.mark.slow
@pytest.mark.parametrize("size", [4096, 5000, 256 * 300 + 1])
def test_each_step_is_bitsandbytes(size: int) -> None:
    """From the same state: equal weights; codes apart only where a value lies between two.

    bitsandbytes' search itself is not exact: near 0 it ends up to 7 codes from the nearest one.
    """
    theirs, source = weights(size), torch.Generator().manual_seed(1)
    other = bitsandbytes.optim.AdamW(theirs, **OPTIONS)
    for _ in range(12):
        ours = [torch.nn.Parameter(theirs[0].detach().clone())]
        own = BlockwiseAdamW(ours, **OPTIONS)
        own.load_state_dict(other.state_dict())
        ours[0].grad = torch.randn(size, generator=source) * torch.logspace(-4, 0, size)
        theirs[0].grad = ours[0].grad.clone()
        own.step()
        other.step()
        mine, its = own.state[ours[0]], other.state[theirs[0]]
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
        assert mine["step"] == its["step"]
        for number in ("1", "2"):
            apart = (mine[f"state{number}"].int() - its[f"state{number}"].int()).abs()
            assert apart.max() <= 8
            assert (apart > 0).float().mean() < 0.05
            torch.testing.assert_close(mine[f"absmax{number}"], its[f"absmax{number}"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_the_nearest(signed: bool) -> None:
    """To a fifteenth of a step, for every number between -1 (0) and 1."""
    codes_of = _tables()[1 if signed else 3]
    map_ = bitsandbytes.functional.create_dynamic_map(signed=signed).numpy()
    values = np.concatenate([np.linspace(-1 if signed else 0, 1, 100_001), np.logspace(-9, 0, 10_001)])
    values = values.astype(np.float32)
    codes = codes_of[values.view(np.uint32) >> 14].astype(int)
    nearest = np.searchsorted((map_[1:] + map_[:-1]) / 2, values)
    step = np.diff(map_, append=map_[-1] + 1)
    error = np.abs(map_[codes] - values) - np.abs(map_[nearest] - values)
    assert (error <= step[np.minimum(codes, nearest)] / 7).all()
    assert (np.abs(codes - nearest) <= 1).all()


def test_many_steps_stay_together() -> None:
    """Within less than what the quantisation itself moves them away from AdamW in 32 bits."""
    ours, theirs, exact = weights(20_000), weights(20_000), weights(20_000)
    stepped(BlockwiseAdamW, ours, 100)
    stepped(bitsandbytes.optim.AdamW, theirs, 100)
    stepped(torch.optim.AdamW, exact, 100)
    quantised = (theirs[0] - exact[0]).norm()
    assert (ours[0] - theirs[0]).norm() < quantised
    assert (ours[0] - exact[0]).norm() < 1.1 * quantised
    assert quantised < 0.1 * (exact[0] - weights(20_000)[0]).norm()


def test_the_first_step_is_adamws() -> None:
    """The state is quantised after it is used."""
    ours, exact = weights(5000), weights(5000)
    stepped(BlockwiseAdamW, ours, 1)
    stepped(torch.optim.AdamW, exact, 1)
    torch.testing.assert_close(ours[0], exact[0], rtol=1e-6, atol=1e-7)


def test_threads_change_no_bit() -> None:
    before = torch.get_num_threads()
    one, three = weights(256 * 1000 + 3), weights(256 * 1000 + 3)
    stepped(BlockwiseAdamW, one, 3)
    torch.set_num_threads(3)
    stepped(BlockwiseAdamW, three, 3)
    torch.set_num_threads(before)
    assert torch.equal(one[0], three[0])


def test_a_block_of_zeros_stays_one() -> None:
    parameter = torch.nn.Parameter(torch.ones(4096))
    parameter.grad = torch.zeros(4096)
    optimizer = BlockwiseAdamW([parameter], lr=0.1, weight_decay=0.0, optim_bits=8)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(4096))
    assert optimizer.state[parameter]["absmax1"].tolist() == [0.0] * 16


def test_state_is_a_quarter_and_bitsandbytes_reads_it(tmp_path: Path) -> None:
    """After a trip to disk; the next step is bitsandbytes' own, from the same state."""
    ours, theirs = weights(8192, 100, 4096), weights(8192, 100, 4096)  # two that share their maps
    optimizer = stepped(BlockwiseAdamW, ours, 3)
    state = optimizer.state[ours[0]]
    size = sum(state[name].nbytes for name in ("state1", "state2", "absmax1", "absmax2"))
    assert size / (8 * 8192) == pytest.approx(0.2539, abs=1e-4)
    save_pytree(tmp_path, "optimizer", optimizer.state_dict())
    other = bitsandbytes.optim.AdamW(theirs, **OPTIONS)
    other.load_state_dict(load_pytree(tmp_path, "optimizer"))
    again = BlockwiseAdamW(weights(8192, 100, 4096), **OPTIONS)
    again.load_state_dict(load_pytree(tmp_path, "optimizer"))
    for name in ("state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2"):
        assert torch.equal(other.state[theirs[0]][name], state[name])
        assert torch.equal(again.state[again.param_groups[0]["params"][0]][name], state[name])
    assert other.state[theirs[1]]["state1"].dtype == torch.float32  # 100 values are not worth a block


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_bnb_8bit"])
def test_both_names_select_it(name: str, tiny_model_dir: Path) -> None:
    plan = make_plan(None, values={"model_name_or_path": str(tiny_model_dir), "optim": name, "adam_beta2": 0.95})
    parameter = torch.nn.Parameter(torch.ones(4096))
    optimizer = plan.optimizer.component.create(plan, [{"params": [parameter], "lr": 0.5, "weight_decay": 0.0}])
    assert type(optimizer) is BlockwiseAdamW
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert plan.optimizer.component.state_bytes == pytest.approx(8 / 4, rel=0.02)


def test_half_precision_weights_are_stepped_in_float32() -> None:
    half, exact = [torch.nn.Parameter(weights(5000)[0].detach().bfloat16())], weights(5000)
    exact[0].data = half[0].detach().float()
    stepped(BlockwiseAdamW, half, 1)
    parameter = exact[0]
    parameter.grad = half[0].grad.float()
    BlockwiseAdamW(exact, **OPTIONS).step()
    assert torch.equal(half[0].detach(), parameter.detach().bfloat16())
