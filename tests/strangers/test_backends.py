"""A stranger's attention kernel and a stranger's backend, in runs and against plain torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftcore.api.registry import Plugins
from ftcore.config.planner import make_plan
from ftcore.runner.run import run
from ftcore.testing import tiny_model
from ftcore.training.attention.kernel import AttentionCall, Rule
from ftcore.training.attention.layout import RowLayout
from ftcore.training.attention.plain import PLAIN

from .conftest import code_lines, module


@pytest.fixture
def losses(stranger: Callable[[str], Plugins], values: dict[str, Any], tmp_path: Path) -> Callable[..., list[float]]:
    """``losses("torch_cpu", backend="torch-cpu")``: losses and gradient norms of three steps, and of an evaluation."""

    def train(name: str, **options: Any) -> list[float]:
        folder = tmp_path / str(options.get("backend", "default"))
        own = {"max_steps": 3, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 3, "bf16": False}
        own |= {"output_dir": str(folder), "eval_dataset": values["dataset"], "use_cpu": True}
        assert run(make_plan(None, plugins=stranger(name), values=values | own | options)) == 0
        lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
        return [line[key] for line in lines for key in ("loss", "grad_norm", "eval_loss") if key in line]

    return train


def test_how_long_they_are() -> None:
    assert code_lines("sliding_window") <= 40
    assert code_lines("torch_cpu") <= 60


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rm", "dpo", "kto"])
def test_a_second_backend_for_cpus(
    stage: str, losses: Callable[..., list[float]], values: dict[str, Any], tmp_path: Path
) -> None:
    """What it computes is what the built-in one and plain torch compute."""
    rows: list[dict[str, Any]] = [
        {"instruction": f"question {n}", "output": f"answer {n}", "chosen": f"yes {n}", "rejected": f"no {n * 9}"}
        for n in range(8)
    ]
    entry: dict[str, Any] = {"file_name": "rows.json"}
    if stage in ("rm", "dpo"):
        entry |= {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}
    if stage == "kto":
        rows = [{**row, "good": number % 2 == 0} for number, row in enumerate(rows)]
        entry |= {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "good"}}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": entry}))
    values |= {"dataset": "rows", "dataset_dir": str(tmp_path), "stage": stage}
    found = {name: losses("torch_cpu", backend=name) for name in ("torch-cpu", "reference", "cpu")}
    assert len(found["cpu"]) == 7
    assert found["torch-cpu"] == pytest.approx(found["reference"], rel=1e-4)
    assert found["torch-cpu"] == pytest.approx(found["cpu"], rel=1e-4)


@pytest.mark.slow
def test_a_kernel_for_sliding_windows(
    losses: Callable[..., list[float]], values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Mistral whose window is shorter than its rows."""
    from transformers import AutoConfig, MistralConfig, MistralForCausalLM

    folder = tiny_model(tmp_path / "mistral")
    fields = AutoConfig.from_pretrained(folder).to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = MistralConfig(
        **{name: fields[name] for name in (*kept, "num_key_value_heads", "pad_token_id", "eos_token_id")},
        sliding_window=5,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    values["model_name_or_path"] = str(folder)
    kernel, calls = module("sliding_window").SlidingWindow, list[Any]()
    real = kernel.forward
    monkeypatch.setattr(kernel, "forward", lambda self, call: calls.append(call) or real(self, call))
    found = {name: losses("sliding_window", backend=name) for name in ("windowed", "reference")}
    assert found["windowed"] == pytest.approx(found["reference"], rel=1e-4)
    assert len(calls) >= 2 * 3  # of each layer in each step


@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=4),
    window=st.integers(1, 9),
    heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    seed=st.integers(0, 99),
)
def test_the_kernel_is_plain_torchs(lengths: list[int], window: int, heads: tuple[int, int], seed: int) -> None:
    """Outputs and gradients, in float64."""
    torch.manual_seed(seed)
    shapes = [(1, count, sum(lengths), 8) for count in (heads[0], heads[1], heads[1])]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    layout = RowLayout(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32))
    call = AttentionCall(*tensors, Rule(True, 0.0, None, window, None, None), layout)
    kernel = module("sliding_window").SlidingWindow()
    assert kernel.supports(call)
    found, expected = kernel.forward(call), PLAIN.forward(call)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, tensors, upstream), torch.autograd.grad(expected, tensors, upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
