"""Parallel strategies: the loop reaches forward pass, head and sums through them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ftcore.training.callbacks.progress import read_log
from ftcore.training.parallel.accelerated import SingleProcess

LENGTHS = [9, 7, 8, 6, 11, 5, 12, 10]


class Sharded(SingleProcess):
    """Keeps weights as halves, as a strategy that shards them would, and counts what it is asked."""

    name = "sharded"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[str] = []

    def forward(self, loss_of: Callable[[Any], torch.Tensor], batch: Any) -> torch.Tensor:
        self.asked.append("forward")
        return super().forward(loss_of, batch)

    def full_tensor(self, weight: torch.Tensor) -> torch.Tensor:
        self.asked.append("full_tensor")
        return torch.cat(weight.chunk(2))  # a new tensor, through which gradients go

    def total(self, number: float) -> float:
        self.asked.append("total")
        return super().total(number)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_head_and_the_forward_pass_are_reached_through_it(
    method: str, trainer_of: Any, tokens: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With whole weights that the strategy puts together the steps are the same."""
    from ftcore.training import trainer as module

    lines = {}
    for name in ("whole", "sharded"):
        made: list[Sharded] = []
        if name == "sharded":
            monkeypatch.setattr(
                module, "strategy_of", lambda args, *_, made=made: made.append(Sharded(args)) or made[0]
            )
        trainer = trainer_of(tokens(LENGTHS), finetuning_type=method, output_dir=str(tmp_path / name))
        trainer.train()
        lines[name] = [(line["loss"], line["grad_norm"]) for line in read_log(tmp_path / name / "trainer_log.jsonl")]
    assert lines["sharded"] == [pytest.approx(line, rel=1e-6) for line in lines["whole"]]
    assert len(lines["whole"]) == 3
    asked = made[0].asked
    assert asked.count("forward") >= 3
    assert asked.count("full_tensor") >= 3
    assert asked.count("total") == 2 * 3 + 1  # weights and tokens of each step, and the rows of the run
