"""Runs on different backends: the same losses to rounding, and a stranger's backend that is used by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcore.api.components import Backend
from ftcore.api.plan import Plan
from ftcore.api.registry import Plugins
from ftcore.config.planner import make_plan
from ftcore.runner.run import run
from ftcore.training.attention.kernel import AttentionCall
from ftcore.training.backend import BackendRuntime


@pytest.fixture
def trained(tmp_path: Path, tiny_model_dir: Path, rows_file: Path) -> Callable[..., tuple[list[Any], dict[str, Any]]]:
    """``trained(plugins, backend=...)``: the lines of the log with a loss, and the record of the run."""

    def make(plugins: Plugins, **values: Any) -> tuple[list[Any], dict[str, Any]]:
        out = tmp_path / values["backend"]
        base = {"model_name_or_path": str(tiny_model_dir), "dataset": str(rows_file), "template": "chatml"}
        base |= {"do_train": True, "output_dir": str(out), "max_steps": 3, "logging_steps": 1, "use_cpu": True}
        base |= {"learning_rate": 0.01, "per_device_train_batch_size": 2, "bf16": False, "plot_loss": False}
        assert run(make_plan(None, plugins=plugins, values=base | values)) == 0
        lines = [json.loads(line) for line in (out / "trainer_log.jsonl").read_text().splitlines()]
        return [line for line in lines if "loss" in line], json.loads((out / "ft_run.json").read_text())

    return make


@pytest.mark.slow
def test_the_cpus_backend_trains_as_plain_torch_does(
    trained: Callable[..., tuple[list[Any], dict[str, Any]]], built_in: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {}
    for name in ("cpu", "reference"):
        lines, record = trained(built_in, backend=name)
        assert record["components"]["backend"] == f"ftcore:{name}"
        assert f"inference engine huggingface, backend {name}, " in capsys.readouterr().out
        losses[name] = [line["loss"] for line in lines]
    assert len(losses["cpu"]) == 3
    assert losses["cpu"] == pytest.approx(losses["reference"], rel=1e-5)


class Counted:
    """A stranger's attention kernel, which leaves every call to the core's plain one."""

    name = "counted"
    splits_rows = False

    def __init__(self) -> None:
        self.calls = 0

    def supports(self, call: AttentionCall) -> bool:
        self.calls += 1
        return False

    def forward(self, call: AttentionCall) -> Any:
        raise NotImplementedError


@pytest.mark.slow
def test_a_strangers_backend_is_asked_by_its_name(
    trained: Callable[..., tuple[list[Any], dict[str, Any]]],
    with_plugins: Callable[..., Plugins],
    hooks: Callable[..., Any],
) -> None:
    kernel, made = Counted(), []

    class OwnRuntime(BackendRuntime):
        name = "own"
        attention = (kernel,)

    class Own(Backend):
        def runtime(self, plan: Plan) -> Any:
            made.append(plan.device)
            return OwnRuntime()

    own = Own(name="own", summary="of a stranger")
    plugins = with_plugins(acme=hooks(ft_backends=lambda: [own]))
    lines, record = trained(plugins, backend="own")
    assert record["components"]["backend"] == "acme:own"
    assert made == ["cpu"]
    assert kernel.calls > 0
    plain, _ = trained(plugins, backend="reference")
    assert [line["loss"] for line in lines] == [line["loss"] for line in plain]
