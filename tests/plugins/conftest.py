"""Fixtures for tests of methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ftcore.api.plan import Plan
from ftcore.config.planner import make_plan


@pytest.fixture
def plan_of(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Plan]:
    """``plan_of(option=value)``: a plan over the tiny model."""

    def make(**values: Any) -> Plan:
        base = {"model_name_or_path": str(tiny_model_dir), "output_dir": str(tmp_path / "out")}
        return make_plan(None, values=base | values)

    return make


@pytest.fixture
def base(tiny_model_dir: Path) -> Callable[..., Any]:
    """The tiny model, loaded anew by plain transformers."""
    from transformers import AutoModelForCausalLM

    def load(dtype: torch.dtype = torch.float32, folder: Path = tiny_model_dir) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    return load


@pytest.fixture
def applied(plan_of: Callable[..., Plan]) -> Callable[..., Any]:
    """``applied(option=value)``: the plan, its method, and the model that `ftcore.runner.run` would train."""

    def make(**values: Any) -> Any:
        plan = plan_of(**values)
        method = plan.method.component
        kwargs = {"dtype": getattr(torch, plan.precision.compute)} | method.load_kwargs(plan)
        model = plan.plugins.hook.ft_load_model(plan=plan, kwargs=kwargs)
        return SimpleNamespace(plan=plan, method=method, model=method.apply(plan, model))

    return make


@pytest.fixture
def shake() -> Callable[[Any], None]:
    """Gives what is trained other values."""

    def change(model: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.requires_grad:
                    tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)

    return change


@pytest.fixture
def logits() -> Callable[[Any], torch.Tensor]:
    """What a model makes of one sequence."""

    def compute(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(torch.arange(3, 40)[None]).logits

    return compute
