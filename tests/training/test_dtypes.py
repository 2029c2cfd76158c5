"""Runs in each precision: dtypes of weights, of what is trained and of what is left, and losses that agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftcore.config.planner import make_plan
from ftcore.resources import hardware
from ftcore.resources.hardware import Hardware
from ftcore.training.callbacks.progress import read_log

BF16, F32 = torch.bfloat16, torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options", "frozen", "trained", "saved"),
    [
        ("full", {}, F32, F32, F32),
        ("lora", {}, BF16, F32, F32),
        ("lora", {"bf16": False}, F32, F32, F32),
        ("full", {"pure_bf16": True}, BF16, BF16, BF16),
        ("lora", {"pure_bf16": True}, BF16, BF16, BF16),
    ],
)
def test_dtypes_of_a_run(
    method: str,
    options: dict[str, Any],
    frozen: torch.dtype,
    trained: torch.dtype,
    saved: torch.dtype,
    tiny_model_dir: Path,
    rows_file: Path,
    tmp_path: Path,
    with_plugins: Any,
    hooks: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a processor that multiplies bfloat16, by its word; the losses are float32's within bfloat16's resolution."""
    from ftcore.runner.run import run

    seen: dict[str, set[torch.dtype]] = {}

    def ft_model_ready(plan: Any, model: Any, tokenizer: Any) -> None:
        for tensor in model.parameters():
            seen.setdefault("trained" if tensor.requires_grad else "frozen", set()).add(tensor.dtype)

    plugins = with_plugins(acme=hooks(ft_model_ready=ft_model_ready))
    losses = {}
    for name, machine, extra in (
        ("here", Hardware(memory=8 << 30, cpu_bf16=True), options),
        ("plain", Hardware(memory=8 << 30), {}),
    ):
        monkeypatch.setattr(hardware, "detect", lambda machine=machine: machine)
        values = {"model_name_or_path": str(tiny_model_dir), "dataset": str(rows_file), "template": "chatml"}
        values |= {"do_train": True, "finetuning_type": method, "max_steps": 3, "logging_steps": 1}
        values |= {"output_dir": str(tmp_path / name), "save_strategy": "no", "learning_rate": 1e-3, "seed": 1}
        assert run(make_plan(None, plugins=plugins, values=values | extra)) == 0
        if name == "here":
            said = capsys.readouterr().out
            assert f"trainable parameters are trained in {str(trained).removeprefix('torch.')}" in said
            assert seen["trained"] == {trained}
            assert seen.get("frozen", {frozen}) == {frozen}
        losses[name] = [line["loss"] for line in read_log(tmp_path / name / "trainer_log.jsonl")]
    file = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    assert {tensor.dtype for tensor in load_file(tmp_path / "here" / file).values()} == {saved}
    assert losses["here"] == [pytest.approx(loss, rel=5e-3) for loss in losses["plain"]]
