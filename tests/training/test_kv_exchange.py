"""One row in two halves, of which the second sees the first: the same numbers wherever it is cut."""

from __future__ import annotations

import threading
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from ft_plugins.backends.cpu import split_forward
from ft_plugins.backends.cpu.fused_layers import fuse_layers
from ft_plugins.backends.cpu.kv_exchange import KVChannel, KVSlice, split_row
from ft_plugins.backends.cpu.runtime import CpuRuntime
from ft_plugins.backends.cpu.split_forward import NEAR, SequenceSplit
from ft_plugins.backends.cpu.thread_pool import MIN_TOKENS, ThreadPool
from ftcore.training.batching.collators import Batch, collate
from ftcore.training.batching.shared_prefix import share_prefixes
from ftcore.training.cost_model.prefix import AlwaysShare
from ftcore.training.cost_model.tokens import visible
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.forward.reward import RewardForward

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21's

VOCABULARY = 96
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
ROWS = ((0, 9, 6), (0, 9, 14), (4, 3, 1), (4, 3, 8))
"""Of each row the seed and length of what it begins with, and its own tokens."""


def row(seed: int, beginning: int, own: int) -> dict[str, Any]:
    """Tokens of which the own ones are trained, with weights of their own."""
    begins = np.random.default_rng(seed).integers(3, VOCABULARY, beginning)
    random = np.random.default_rng(100 * seed + own)
    weights = np.concatenate([np.zeros(beginning), random.integers(1, 4, own) / 2])
    ids = np.concatenate([begins, random.integers(3, VOCABULARY, own)])
    return {"input_ids": ids.astype(np.int32), "weights": weights.astype(np.float32), "index": seed}


def batch_of(rows: Any = ROWS) -> Batch:
    return share_prefixes(collate([row(*one) for one in rows]), AlwaysShare())


@cache
def scorer(kind: str = "lora", classes: bool = False) -> CausalLMForward:
    """Over a tiny Llama in float64, of whose numbers some are trained."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE)
    make = transformers.LlamaForSequenceClassification if classes else transformers.LlamaForCausalLM
    if classes:
        config.num_labels = 1
    model: Any = make(config).double()
    if kind == "lora":
        task = "SEQ_CLS" if classes else "CAUSAL_LM"
        model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules="all-linear", task_type=task))
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.data.normal_()
    elif kind == "freeze":
        for name, tensor in model.named_parameters():
            tensor.requires_grad_("layers.2" in name)
    made = (RewardForward if classes else CausalLMForward)(model, CpuRuntime())
    made.probe_capabilities()
    fuse_layers(model)
    assert (made.packed, made.fused, made.shares, made.splits_rows) == (True,) * 4
    return made


def gradients(model: Any, value: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value.backward()
    return {name: tensor.grad.clone() for name, tensor in model.named_parameters() if tensor.grad is not None}


def split_at(one: CausalLMForward, at: int, can_run_concurrent: bool = True) -> SequenceSplit:
    split = SequenceSplit(ThreadPool(2), one, can_run_concurrent)
    split.split_point = lambda batch: at  # type: ignore[method-assign]
    return split


def the_same(one: CausalLMForward, batch: Batch, at: int, outputs: str, monkeypatch: Any) -> None:
    weights = torch.randn(99, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    measured = getattr(one, outputs)

    def total() -> torch.Tensor:
        found = measured(batch)
        return found if not found.ndim else (found * weights[: len(found)]).sum()

    whole = total()
    expected = gradients(one.model, whole)
    monkeypatch.setattr(split_forward, "MIN_TOKENS", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one, "sequence_split", split_at(one, at))
        assert one.sequence_split is not None
        assert one.sequence_split.accepts(batch)
        parts = total()
        found = gradients(one.model, parts)
        with torch.no_grad():
            assert total().item() == pytest.approx(whole.item(), rel=1e-12)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        assert found[name].sub(gradient).abs().max().item() <= 1e-12 * scale + 1e-13, (at, name)


# ---- the same numbers ----


@pytest.mark.slow
@pytest.mark.parametrize("at", range(1, batch_of()["input_ids"].numel()))
def test_every_cut_gives_the_same_log_probabilities_and_gradients(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    the_same(scorer(), batch_of(), at, "logps", monkeypatch)


@pytest.mark.parametrize("kind", ["lora", "full", "freeze"])
@pytest.mark.parametrize("outputs", ["weighted_nll", "logps"])
@pytest.mark.parametrize("at", [5, 13])
def test_whatever_is_trained(kind: str, outputs: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    the_same(scorer(kind), batch_of(), at, outputs, monkeypatch)


@pytest.mark.parametrize("at", [3, 9, 12, 30])
def test_scores_of_a_reward_model(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    the_same(scorer(classes=True), batch_of(), at, "rewards", monkeypatch)


def test_a_half_without_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of([(1, 30, 5)])
    assert int(batch["positions"].min()) == 29
    the_same(scorer(), batch, 20, "logps", monkeypatch)


rows_of_a_batch = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(2, 7)), min_size=1, max_size=5)


@pytest.mark.slow
@given(rows=rows_of_a_batch, share=st.floats(0.05, 0.95))
def test_any_rows_cut_anywhere(rows: Any, share: float) -> None:
    batch = batch_of(rows)
    at = min(max(1, int(share * batch["input_ids"].numel())), batch["input_ids"].numel() - 1)
    with pytest.MonkeyPatch.context() as patch:
        the_same(scorer(), batch, at, "logps", patch)


# ---- what is cut ----


@given(rows=rows_of_a_batch, share=st.floats(0, 1))
def test_every_token_sees_what_it_saw(rows: Any, share: float) -> None:
    batch = batch_of(rows)
    at = min(max(1, int(share * batch["input_ids"].numel())), batch["input_ids"].numel() - 1)
    halves = split_row(batch, at)
    for name in ("input_ids", "labels", "weights", "position_ids"):
        assert torch.equal(torch.cat([half[name] for half in halves], 1), batch[name])
    assert torch.equal(torch.cat([halves[0]["positions"], halves[1]["positions"] + at]), batch["positions"])
    seen = [*visible(halves[0]), *(visible(halves[1]) + _lent(halves[1]))]
    assert seen == visible(batch).tolist() == (batch["position_ids"][0] + 1).tolist()
    assert ("kv_part" in halves[0]) == ("kv_part" in halves[1]) == bool(_lent(halves[1]).any())


def _lent(half: Batch) -> Any:
    starts = half["cu_seqlens"].tolist()
    borrowed = half["kv_part"].remote_ranges if "kv_part" in half else ((),) * (len(starts) - 1)
    counts = [sum(some.stop - some.start for some in tokens) for tokens in borrowed]
    return np.repeat(counts, [end - start for start, end in pairwise(starts)])


def test_the_middle_is_between_sequences_where_one_is_near() -> None:
    split = SequenceSplit(ThreadPool(2), scorer(), can_run_concurrent=True)
    batch = batch_of([(1, 0, 50), (2, 0, 50)])
    assert split.split_point(batch) == 50
    batch = batch_of([(1, 0, 80), (2, 0, 30)])
    work = split.cost_model(batch)
    at = split.split_point(batch)
    assert 0 < at < 80
    assert abs(work[:at].sum() / work.sum() - 0.5) < NEAR


def test_what_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    one = scorer()
    split = SequenceSplit(ThreadPool(2), one, can_run_concurrent=True)
    long, short = batch_of([(1, 2, 2 * MIN_TOKENS)]), batch_of([(1, 2, 2 * MIN_TOKENS - 8)])
    assert split.accepts(long)
    assert not split.accepts(short)
    assert not split.accepts({**long, "images": [{}]})
    assert not split.pool.run_one(lambda: split.accepts(long))
    assert not split.accepts({**long, "positions": long["positions"].flip(0)})
    assert not SequenceSplit(split.pool, one, can_run_concurrent=False).accepts(long)
    with torch.no_grad():
        assert SequenceSplit(split.pool, one, can_run_concurrent=False).accepts(long)
    for window, taken in ((2 * MIN_TOKENS + 2, False), (2 * MIN_TOKENS + 3, True)):
        split.window = window
        assert split.accepts(long) is taken
    split.window = None
    for name in ("splits_rows", "shares", "fused"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(one, name, False)
            assert not split.accepts(long)


# ---- errors ----


def test_an_error_of_one_half_is_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    one, batch = scorer(), batch_of()
    own, before = one._logps, threading.active_count()
    for failing in (0, 1):

        def fails(half: Batch, failing: int = failing) -> torch.Tensor:
            if ("kv_part" in half and half["kv_part"].remote_ranges is None) == (failing == 0):
                raise MemoryError("of one half")
            return own(half)

        with pytest.raises(MemoryError, match="of one half"):
            split_at(one, 13)(batch, fails)
        assert threading.active_count() - before <= 4  # two pools of two threads


def test_an_error_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    one = scorer()
    made = split_at(one, 13)(batch_of(), one._logps)

    def fails(*_: Any) -> None:
        raise MemoryError("while going back")

    monkeypatch.setattr(KVSlice, "add_grad", fails)
    with pytest.raises(MemoryError, match="while going back"):
        made.sum().backward()


def test_what_is_waited_for_comes_or_the_cause() -> None:
    channel = KVChannel()
    pair = (torch.ones(1), torch.zeros(1))
    threading.Timer(0.02, channel.send, ("kv", 3, pair)).start()
    assert channel.receive("kv", 3) is pair
    with pytest.raises(ValueError, match="first"), channel.propagate_errors():
        raise ValueError("first")
    with pytest.raises(ValueError, match="first"):
        channel.receive("kv", 3)


# ---- a run ----


def trained(trainer: Any) -> torch.Tensor:
    trainer.train()
    return torch.cat([tensor.detach().view(-1) for tensor in trainer.model.parameters() if tensor.requires_grad])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}], ids=str)
def test_a_run_ends_in_the_numbers_of_whole_batches(
    options: Any,
    stops_after: Any,
    two_threads: None,
    trainer_of: Any,
    tokens: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float64; and in the same bytes again, in one go and stopped between."""
    cuts = []
    monkeypatch.setattr(split_forward, "split_row", lambda *given: cuts.append(given) or split_row(*given))
    ends = []
    ways: list[tuple[str, bool, dict[str, Any]]] = [
        ("whole", False, {"tokens_per_pass": False}),
        ("cut", False, {}),
        ("again", True, {}),
        ("again", False, {}),
    ]
    for name, stops, wish in ways:
        values = {"per_device_train_batch_size": 3, "output_dir": str(tmp_path / name), "max_steps": 4} | options
        trainer = trainer_of(
            tokens([700, 40, 30, 600, 300, 20]),
            dtype=torch.float64,
            **values | {"save_strategy": "steps", "save_steps": 500} | wish,
        )
        if trainer.scorer.sequence_split is not None:  # of a tiny model adapters are a large part
            trainer.can_run_concurrent = trainer.scorer.sequence_split.can_run_concurrent = True
        if stops:
            trainer.add_callback(stops_after(2))
        ends.append(trained(trainer))
        assert bool(cuts) is (name != "whole")
    whole, halves, _, again = ends
    assert (halves - whole).norm() <= 1e-9 * whole.norm()
    assert torch.equal(halves, again)


def test_layers_that_are_computed_again_borrow_nothing(two_threads: None, trainer_of: Any, tokens: Any) -> None:
    assert trainer_of(tokens([700])).scorer.sequence_split is not None
    assert trainer_of(tokens([700]), disable_gradient_checkpointing=False).scorer.sequence_split is None
