"""Sequences end to end through varlen attention and the fused head give what a padded forward gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ft_plugins.backends.cpu.runtime import CpuRuntime
from ftcore.training.batching.collators import collate
from ftcore.training.forward.causal_lm import CausalLMForward

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21's

FAMILIES = ["llama", "llama_tied", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "gpt_oss", "cohere2", "granite"]
LENGTHS = (23, 1, 14, 40, 2, 9)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_padded(family: str, small_models: Any, tokens: Any, plain_loss: Any, gradient_norm: Any) -> None:
    """Losses and gradient norms of the two ways, to 1e-9; also that the cheap way was taken.

    Gemma 2's own eager attention gives NaN in float64 and gpt-oss's experts refuse it: float32 and 1e-4 for these.
    """
    dtype, exact = (torch.float32, 1e-4) if family in ("gemma2", "gpt_oss") else (torch.float64, 1e-9)
    data = tokens(LENGTHS, vocabulary=96)
    rows = [data[number] for number in range(len(data))]
    model = small_models[family].make(dtype)
    expected = plain_loss(model, rows)
    expected.backward()
    expected_norm = gradient_norm(model)
    model.zero_grad()
    scorer = CausalLMForward(model, CpuRuntime())
    scorer.probe_capabilities()
    batch = collate(rows)
    loss = scorer.weighted_nll(batch) / batch["weights"].sum()
    loss.backward()
    assert (scorer.packed, scorer.fused) == (True, True)
    assert loss.item() == pytest.approx(expected.item(), rel=exact)
    assert gradient_norm(model) == pytest.approx(expected_norm, rel=exact)


@pytest.mark.parametrize("rows", range(1, 9))
def test_packed_equals_padded_in_float32(
    rows: int, small_models: Any, tokens: Any, plain_loss: Any, gradient_norm: Any
) -> None:
    """Batches of 1 to 8 rows, to 1e-4."""
    data = tokens([7, 30, 12, 3, 21, 16, 5, 28][:rows], vocabulary=96)
    batch = [data[number] for number in range(rows)]
    model = small_models["mistral"].make()
    expected = plain_loss(model, batch)
    expected.backward()
    expected_norm = gradient_norm(model)
    model.zero_grad()
    scorer = CausalLMForward(model, CpuRuntime())
    scorer.probe_capabilities()
    flat = collate(batch)
    loss = scorer.weighted_nll(flat) / flat["weights"].sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert gradient_norm(model) == pytest.approx(expected_norm, rel=1e-4)


@pytest.mark.parametrize(("packed", "fused"), [(True, True), (True, False), (False, True), (False, False)])
def test_every_way_gives_the_same(packed: bool, fused: bool, small_models: Any, tokens: Any, plain_loss: Any) -> None:
    """The four ways through a model, and their log-probabilities."""
    data = tokens(LENGTHS, vocabulary=96)
    rows = [data[number] for number in range(len(data))]
    model = small_models["llama"].make(torch.float64).eval()
    expected = plain_loss(model, rows).item()
    scorer = CausalLMForward(model, CpuRuntime())
    scorer.probe_capabilities()
    scorer.fused = fused
    if not packed:
        scorer.packed = False
        model.set_attn_implementation("sdpa")
    batch = collate(rows)
    weights = batch["weights"][0, batch["positions"]].double()
    assert (scorer.weighted_nll(batch) / weights.sum()).item() == pytest.approx(expected, rel=1e-9)
    assert (-(scorer.logps(batch) * weights).sum() / weights.sum()).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt_oss"])
def test_packing_isolates(family: str, small_models: Any, tokens: Any) -> None:
    """Other tokens in row 1 change the other rows' logits by exactly 0, and its own by something."""
    data = tokens((8, 11, 9), vocabulary=96, untrained=())
    for weights in data.weights:
        weights[:] = 1
    scorer = CausalLMForward(small_models[family].make().eval(), CpuRuntime())
    scorer.probe_capabilities()
    with torch.no_grad():
        before = scorer.logits(collate([data[number] for number in range(3)]))
        data.rows[1] = (data.rows[1] + 17) % 96
        after = scorer.logits(collate([data[number] for number in range(3)]))
    change = (after - before).abs().amax(-1)
    assert change[:7].max() == 0
    assert change[17:].max() == 0
    assert change[7:17].min() > 0


def test_a_model_with_position_biases_is_padded(
    small_models: Any, tokens: Any, plain_loss: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Bloom's ALiBi does not pass through the attention interface: the probe finds that out and the loss is right."""
    data = tokens(LENGTHS, vocabulary=96)
    rows = [data[number] for number in range(len(data))]
    model = small_models["bloom"].make().eval()
    scorer = CausalLMForward(model, CpuRuntime())
    scorer.probe_capabilities()
    batch = collate(rows)
    assert scorer.packed is False
    assert "batches are padded" in caplog.text
    expected = plain_loss(model, rows).item()
    assert (scorer.weighted_nll(batch) / batch["weights"].sum()).item() == pytest.approx(expected, rel=1e-5)


def test_a_head_with_an_adapter_goes_through_the_model(small_models: Any, tokens: Any, plain_loss: Any) -> None:
    """LoRA on the head is not a plain linear layer; its logits are the model's own."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False, r=4)
    model = get_peft_model(small_models["mistral"].make(torch.float64), config).to(torch.float64).eval()
    data = tokens(LENGTHS, vocabulary=96)
    rows = [data[number] for number in range(len(data))]
    scorer = CausalLMForward(model, CpuRuntime())
    scorer.probe_capabilities()
    batch = collate(rows)
    assert (scorer.packed, scorer.fused) == (True, False)
    expected = plain_loss(model, rows).item()
    assert (scorer.weighted_nll(batch) / batch["weights"].sum()).item() == pytest.approx(expected, rel=1e-9)


def test_a_head_saved_whole_is_fused(small_models: Any, tokens: Any, plain_loss: Any) -> None:
    """``modules_to_save`` trains a copy of the head; that copy is used, and gets the gradient."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], r=4)
    model = get_peft_model(small_models["mistral"].make(torch.float64), config).to(torch.float64).eval()
    copy = model.get_base_model().lm_head.modules_to_save["default"]
    with torch.no_grad():
        copy.weight.mul_(1.5)
    data = tokens(LENGTHS, vocabulary=96)
    rows = [data[number] for number in range(len(data))]
    scorer = CausalLMForward(model, CpuRuntime())
    scorer.probe_capabilities()
    batch = collate(rows)
    loss = scorer.weighted_nll(batch) / batch["weights"].sum()
    loss.backward()
    assert scorer.fused is True
    assert loss.item() == pytest.approx(plain_loss(model, rows).item(), rel=1e-9)
    assert copy.weight.grad.abs().max() > 0


def test_a_batch_without_a_label_has_a_zero_gradient(small_models: Any) -> None:
    """A micro-batch whose rows train nothing."""
    model = small_models["llama"].make()
    scorer = CausalLMForward(model, CpuRuntime())
    scorer.probe_capabilities()
    ids = np.arange(5, 12, dtype=np.int32)
    loss = scorer.weighted_nll(collate([{"input_ids": ids, "weights": np.zeros(7, np.float32), "index": 0}]))
    loss.backward()
    assert loss.item() == 0
    assert all(tensor.grad is None or tensor.grad.abs().max() == 0 for tensor in model.parameters())


def test_generation_still_works(small_models: Any) -> None:
    """The implementation stays set after training; with a cache it is the ordinary attention."""
    model = small_models["gemma2"].make().eval()
    prompt = {"input_ids": torch.tensor([[0, 0, 5, 6, 7], [9, 10, 11, 12, 13]])}
    prompt["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    expected = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    scorer = CausalLMForward(model, CpuRuntime())
    scorer.probe_capabilities()
    assert scorer.packed
    assert torch.equal(model.generate(**prompt, max_new_tokens=12, do_sample=False), expected)
