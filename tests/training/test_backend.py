"""A run and its backend's runtime: its state in checkpoints, its signs of memory running out, plain torch without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from ft_plugins.backends.cpu import matmul
from ft_plugins.backends.cpu.matmul import MatmulChoice
from ft_plugins.backends.cpu.runtime import CpuRuntime
from ft_plugins.stages.sft.objective import NextToken
from ftcore.training.backend import REFERENCE, BackendRuntime
from ftcore.training.batching.collators import collate
from ftcore.training.checkpointing.state import saved_backend_state
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.step.guard import out_of_memory
from ftcore.training.trainer import Trainer


class Choosing(BackendRuntime):
    """Chooses a number once, and a resumed run takes the checkpoint's."""

    name = "acme"

    def __init__(self) -> None:
        self.number, self.asked = 0, list[Any]()

    def prepare(self, kept: Mapping[str, Any] | None, *, locking: bool) -> None:
        self.asked.append((kept, locking))
        self.number = 7 if kept is None else kept["number"]

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.number = state["number"]

    def is_out_of_memory(self, error: BaseException) -> bool:
        return str(error) == "acme: full"


@pytest.fixture
def trained(run_of: Any, tokens: Any) -> Any:
    """``trained(backend)``: a trainer of a run with this backend, before its first step."""

    def make(backend: BackendRuntime | None, **options: Any) -> Trainer:
        run = run_of(max_steps=1, save_steps=1, save_strategy="steps", **options)
        run.backend = backend
        return Trainer(run, NextToken(), train=tokens([5, 6, 7, 8]))

    return make


def test_a_checkpoint_holds_the_state_and_a_resumed_run_is_prepared_with_it(trained: Any) -> None:
    first = Choosing()
    trainer = trained(first, use_file_locking=False)
    assert first.asked == [(None, False)]
    first.number = 8
    trainer.train()
    resumed = Choosing()
    trained(resumed)
    assert (resumed.asked, resumed.number) == ([({"number": 8}, True)], 8)
    assert saved_backend_state(trainer.plan, Choosing()) == {"number": 8}
    assert saved_backend_state(trainer.plan, BackendRuntime()) is None  # another backend's state


@pytest.mark.parametrize("choice", [MatmulChoice(forward=True, backward=True), MatmulChoice()])
def test_a_resumed_run_takes_its_checkpoints_products(choice: MatmulChoice, trained: Any) -> None:
    """Before anything is computed."""
    with matmul.choice_scope(MatmulChoice()):
        trainer = trained(None)
        assert isinstance(trainer.backend, CpuRuntime)
        matmul.set_choice(choice)
        trainer.train()
        matmul.set_choice(MatmulChoice(forward=True))
        trained(None)
        assert matmul.get_choice() == choice


def test_out_of_memory_by_torchs_signs_and_by_the_backends() -> None:
    full, other = RuntimeError("acme: full"), RuntimeError("acme: broken")
    assert [out_of_memory(error, Choosing()) for error in (full, other, MemoryError())] == [True, False, True]
    assert not out_of_memory(full, REFERENCE)


def test_without_a_backend_a_forward_pass_is_plain_torch(small_models: Any, tokens: Any) -> None:
    rows = tokens([9, 5], vocabulary=96)
    model, batch = small_models["llama"].make(torch.float64), collate([rows[0], rows[1]])
    found = []
    for backend in (None, BackendRuntime(), CpuRuntime()):
        scorer = CausalLMForward(model, backend)
        scorer.probe_capabilities()
        assert (scorer.packed, scorer.fused, scorer.shares) == (True, True, True)
        assert scorer.splits_rows is isinstance(backend, CpuRuntime)
        found.append(scorer.weighted_nll(batch).detach())
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=0)


def test_numerics_key_names_the_backend_and_its_state() -> None:
    chosen = Choosing()
    assert (REFERENCE.numerics_key(), chosen.numerics_key()) == (["reference", {}], ["acme", {"number": 0}])
