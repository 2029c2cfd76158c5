"""The last layer, behind whose attention only tokens go on that are read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ft_plugins.backends.cpu.fused_layers import fuse_layers
from ft_plugins.backends.cpu.runtime import CpuRuntime
from ftcore.training.batching.collators import collate
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.forward.reward import RewardForward
from ftcore.training.model_transforms.comparing import apply_changes
from ftcore.training.model_transforms.last_layer_pruning import LastLayerPruning, PrunedLastLayer
from ftcore.training.model_transforms.recomputation import enable_recomputation

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft 0.21's
    pytest.mark.usefixtures("torchs_products"),
]

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TAKEN = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
LEFT = ("gemma2", "gemma3_text", "olmo2", "phi3", "cohere", "granite", "mixtral", "gpt_neox")


def model_of(kind: str, **options: Any) -> Any:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    more = {"granite": {"residual_multiplier": 0.5}, "gpt_neox": {}}.get(kind, {})
    given = {name: value for name, value in SMALL.items() if kind != "gpt_neox" or name != "head_dim"}
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**given | more | options)).train()


def scorer_of(model: Any, kind: type[CausalLMForward] = CausalLMForward) -> CausalLMForward:
    scorer = kind(model, CpuRuntime())
    scorer.probe_capabilities()
    return scorer


def prune_last_layer(scorer: CausalLMForward) -> str:
    """Applies the transform if it applies; returns the reason if not."""
    context: Any = SimpleNamespace(scorer=scorer)
    transform = LastLayerPruning()
    if why := transform.applies(context):
        return why
    _, refused = apply_changes(transform.changes(context))
    return refused[0].refused if refused else ""


def batch_of(vocabulary: int = 64) -> Any:
    """Three sequences of which a part has labels: the middle, the end, nothing."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for length, trained in ((9, range(3, 6)), (7, range(5, 7)), (4, ())):
        ids = torch.randint(3, vocabulary, (length,), generator=generator).int().numpy()
        weights = torch.zeros(length)
        weights[list(trained)] = torch.rand(len(trained), generator=generator) + 0.5
        rows.append({"input_ids": ids, "weights": weights.numpy(), "index": len(rows)})
    return collate(rows)


def step(scorer: CausalLMForward, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    scorer.model.zero_grad()
    loss = scorer.weighted_nll(batch)
    loss.backward()
    named = scorer.model.named_parameters()
    return loss.detach(), {name: one.grad.clone() for name, one in named if one.grad is not None}


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("kind", TAKEN)
def test_loss_and_gradients_are_those_of_the_whole_layer(kind: str, lean: bool) -> None:
    model = model_of(kind)
    scorer, batch = scorer_of(model), batch_of()
    loss, gradients = step(scorer, batch)
    if lean:
        fuse_layers(model)
    prune_last_layer(scorer)
    assert isinstance(scorer.last, PrunedLastLayer)
    own_loss, own = step(scorer, batch)
    assert own_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (own[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-8, name
    assert scorer.hidden(batch).shape == (len(batch["positions"]), 32)


def test_in_float64() -> None:
    model = model_of("llama").double()
    scorer, batch = scorer_of(model), batch_of()
    loss, gradients = step(scorer, batch)
    prune_last_layer(scorer)
    assert scorer.last is not None
    own_loss, own = step(scorer, batch)
    assert own_loss.item() == pytest.approx(loss.item(), rel=1e-13)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-10, atol=1e-13)


def test_a_batch_without_labels() -> None:
    model = model_of("llama")
    fuse_layers(model)
    scorer, batch = scorer_of(model), batch_of()
    prune_last_layer(scorer)
    batch["positions"] = batch["positions"][:0]
    loss, gradients = step(scorer, batch)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("kind", LEFT)
def test_layers_of_another_form_stay(kind: str) -> None:
    model = model_of(kind)
    classes = [type(module) for module in model.modules()]
    scorer = scorer_of(model)
    prune_last_layer(scorer)
    assert scorer.last is None
    assert [type(module) for module in model.modules()] == classes


def test_a_layer_that_only_looks_like_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts are Llama's, what it makes of them is not."""
    from transformers.models.llama import modeling_llama

    own = modeling_llama.LlamaDecoderLayer.forward
    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", lambda *args, **more: 1.01 * own(*args, **more))
    scorer = scorer_of(model_of("llama"))
    prune_last_layer(scorer)
    assert scorer.last is None
    assert not any(isinstance(module, PrunedLastLayer) for module in scorer.model.modules())


def test_whole_sequences_come_out_where_nothing_is_said() -> None:
    """As generation and the model's own forward ask for them."""
    model = model_of("llama")
    scorer = scorer_of(model)
    ids = torch.arange(3, 12)[None]
    expected = model(ids).logits
    prune_last_layer(scorer)
    assert torch.equal(model(ids).logits, expected)


def test_with_lora_and_layers_computed_again() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of("llama"), LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False))
    scorer, batch = scorer_of(model), batch_of()
    loss, gradients = step(scorer, batch)
    prune_last_layer(scorer)
    assert scorer.last is not None
    enable_recomputation(model.get_base_model())
    own_loss, own = step(scorer, batch)
    assert own_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, gradient in gradients.items():
        assert (own[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-8, name


def test_a_reward_model_reads_last_tokens() -> None:
    from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIG_MAPPING["llama"](**SMALL, num_labels=1)).train()
    scorer: Any = scorer_of(model, RewardForward)
    batch = batch_of()
    expected = scorer.rewards(batch)
    prune_last_layer(scorer)
    assert scorer.last is not None
    torch.testing.assert_close(scorer.rewards(batch), expected)


def test_work() -> None:
    """To the multiplication: the feed-forward part of tokens that have no label is not computed, forward and back."""
    counts = []
    for taken in (False, True):
        model = model_of("llama")
        scorer, batch = scorer_of(model), batch_of()
        if taken:
            prune_last_layer(scorer)
        with FlopCounterMode(display=False) as counter:
            scorer.weighted_nll(batch).backward()
        counts.append(counter.get_total_flops())
    unread = batch["input_ids"].numel() - len(batch["positions"])
    assert counts[0] - counts[1] == 3 * 2 * unread * 3 * 32 * 48
