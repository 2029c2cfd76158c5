"""AdamW is torch's, with our options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ftcore.planning import make_plan


@pytest.mark.parametrize("name", ["adamw", "adamw_torch", "adamw_torch_fused", None])
def test_every_name_makes_a_fused_adamw(name: str | None, tiny_model_dir: Path) -> None:
    values = {"model_name_or_path": str(tiny_model_dir), "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}
    plan = make_plan(None, values=values | ({"optim": name} if name else {}))
    groups = [{"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.5, "weight_decay": 0.25}]
    optimizer = plan.optimizer.component.create(plan, groups)
    assert type(optimizer) is torch.optim.AdamW
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"], group["fused"]) == (
        0.5,
        0.25,
        (0.8, 0.95),
        1e-6,
        True,
    )
    assert plan.optimizer.component.state_bytes == 8


def test_one_step_by_hand(tiny_model_dir: Path) -> None:
    """The first step is the learning rate, against the gradient's sign, after decay."""
    plan = make_plan(None, values={"model_name_or_path": str(tiny_model_dir)})
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = plan.optimizer.component.create(plan, [{"params": [weight], "lr": 0.1, "weight_decay": 0.5}])
    weight.grad = torch.tensor([3.0, -0.01])
    optimizer.step()
    assert weight.tolist() == pytest.approx([1 - 0.05 - 0.1, -2 + 0.1 + 0.1], abs=1e-5)
