"""Prompts that both answers of a pair share: the layout, attention, the models that allow it, and when it pays."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from ftcore.engine import attention, branches
from ftcore.engine.collate import IGNORED, Batch, tokens_read
from ftcore.engine.pair_batches import collate_pairs
from ftcore.engine.rewards import RewardScorer
from ftcore.engine.scoring import Scorer
from ftcore.engine.sharing import Always, Cost, sharing
from ftcore.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21's

LENGTHS = ((12, 5, 9), (1, 4, 6), (7, 1, 1), (9, 11, 2))
"""Tokens of prompt, chosen and rejected."""


def pairs(lengths: Sequence[tuple[int, int, int]] = LENGTHS, vocabulary: int = 96, seed: int = 0) -> list[Any]:
    """Rows of random tokens, of whose answers some are not trained."""
    random = np.random.default_rng(seed)
    rows = []
    for index, (prompt, *answers) in enumerate(lengths):
        row: dict[str, Any] = {"prompt_ids": random.integers(3, vocabulary, prompt).astype(np.int32), "index": index}
        for name, length in zip(("chosen", "rejected"), answers, strict=True):
            row[f"{name}_ids"] = random.integers(3, vocabulary, length).astype(np.int32)
            row[f"{name}_weights"] = (random.random(length) < 0.8).astype(np.float32)
            row[f"{name}_weights"][0] = 1
        rows.append(row)
    return rows


def sequences_of(batch: Batch) -> list[dict[str, Any]]:
    """Every sequence as it stands in a batch: tokens, positions, labels by position with their weights."""
    starts = batch["cu_seqlens"].tolist()
    found = []
    for (start, end), (first, last) in zip(
        pairwise(starts), batch.get("prefixes", [(0, 0)] * (len(starts) - 1)), strict=True
    ):
        places = [*range(first, last), *range(start, end)]
        where = batch["position_ids"][0, places].tolist()
        labels = {
            int(batch["position_ids"][0, place]): (int(batch["labels"][0, place]), float(batch["weights"][0, place]))
            for place in range(start, end)
            if batch["labels"][0, place] != IGNORED
        }
        found.append({"ids": batch["input_ids"][0, places].tolist(), "positions": where, "labels": labels})
    return found


# ---- the layout ----


@given(
    lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    threshold=st.integers(0, 9),
)
def test_every_pair_is_there_exactly_once(lengths: list[tuple[int, int, int]], seed: int, threshold: int) -> None:
    """Whatever is shared: the same tokens, positions, labels and weights; each label stands in one place."""
    rows = pairs(lengths, seed=seed)

    def shares(prompt: int, rejected: int) -> bool:
        return prompt > threshold

    alone, shared = collate_pairs(rows), collate_pairs(rows, shares)
    assert sequences_of(shared) == sequences_of(alone)
    for name in ("index", "pair_weights"):
        assert torch.equal(torch.as_tensor(shared[name]), torch.as_tensor(alone[name]))
    assert len(shared["positions"]) == len(alone["positions"]) == len(set(shared["positions"].tolist()))
    assert shared["positions"].tolist() == shared["weights"][0].nonzero()[:, 0].tolist()
    saved = sum(prompt - 1 for prompt, _, _ in lengths if prompt > max(threshold, 1))
    assert alone["input_ids"].numel() - shared["input_ids"].numel() == saved
    assert tokens_read(shared) == tokens_read(alone) == alone["input_ids"].numel()
    assert ("prefixes" in shared) == (saved > 0)


# ---- attention ----

ROW = ([9, 4, 6, 3], [(0, 0), (0, 0), (0, 7), (9, 12)])


def tensors(dtype: torch.dtype = torch.float64, heads: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (heads, 2, 2)
    return [
        torch.randn(1, 22, size, 8, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_() for size in sizes
    ]


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int = 99) -> torch.Tensor:
    """Attention under a dense mask, by torch's own function."""
    mask, start = torch.zeros(22, 22, dtype=torch.bool), 0
    for length, (first, last) in zip(*ROW, strict=True):
        places = [*range(first, last), *range(start, start + length)]
        band = attention.Rule(True, 0.0, None, window, None, None).band(length, len(places), mask.device)
        mask[start : start + length, places] = band
        start += length
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def ours(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
    starts = torch.tensor([0, *ROW[0]]).cumsum(0).int()
    module = SimpleNamespace(is_causal=True)
    found, _ = attention.varlen_attention(
        module, query, key, value, None, cu_seq_lens_q=starts, prefixes=ROW[1], **options
    )
    return found


@pytest.mark.parametrize("way", ["two parts", "mask", "window"])
def test_attention_and_its_gradients(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way against a dense mask, in float64."""
    if way == "mask":
        monkeypatch.setattr(attention, "serves", lambda *tensors: False)
    options = {"sliding_window": 5} if way == "window" else {}
    given = tensors()
    expected = plain(*given, *options.values())
    found = ours(*given, **options)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pairs_of = zip(*(torch.autograd.grad(out, given, weights) for out in (found, expected)), strict=True)
    for mine, theirs in pairs_of:
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(ours, tensors(), fast_mode=True)


def test_attention_in_bfloat16_under_autocast() -> None:
    """Queries in float32, as rotary embeddings leave them in some models."""
    given = [tensor.detach() for tensor in tensors(torch.float32)]
    expected = plain(*given)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(*given)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


def test_attention_that_looks_ahead_is_refused() -> None:
    with pytest.raises(attention.UnsupportedAttentionError, match="lets a prompt see the answer"):
        ours(*tensors(), is_causal=False)


def test_flash_attention_gets_the_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn's varlen call, computed here by its documentation: causal, the last query at the last key."""

    def varlen(q: Any, k: Any, v: Any, starts_q: Any, starts_k: Any, most_q: int, most_k: int, **options: Any) -> Any:
        assert options["causal"]
        assert (most_q, most_k) == (9, 13)
        groups, parts = q.shape[1] // k.shape[1], []
        for (a, b), (c, d) in zip(pairwise(starts_q.tolist()), pairwise(starts_k.tolist()), strict=True):
            mask = attention.Rule(True, 0.0, None, None, None, None).band(b - a, d - c, q.device)
            keys, values = (part[c:d].transpose(0, 1).repeat_interleave(groups, 0) for part in (k, v))
            parts.append(scaled_dot_product_attention(q[a:b].transpose(0, 1), keys, values, attn_mask=mask))
        return torch.cat(parts, 1).transpose(0, 1)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=varlen))
    monkeypatch.setattr(attention, "_flash_serves", lambda query, rule: True)
    given = tensors()
    torch.testing.assert_close(ours(*given), plain(*given), rtol=1e-12, atol=1e-12)


# ---- models ----

FAMILIES = ["llama", "llama_tied", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "gpt_oss", "cohere2", "granite"]


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_equals_alone(family: str, small_models: Any, gradient_norm: Any) -> None:
    """Log-probabilities and the norm of a gradient, with sliding windows shorter than the prompts among them.

    Gemma 2 and gpt-oss compute in float32, see test_scoring; norms do in all of them, through which the gradients of
    both answers go together or one by one.
    """
    dtype, exact = (torch.float32, 1e-5) if family in ("gemma2", "gpt_oss") else (torch.float64, 1e-7)
    model = small_models[family].make(dtype)
    scorer = Scorer(model)
    scorer.choose()
    assert scorer.shares
    found = []
    for shares in (None, Always()):
        logps = scorer.logps(collate_pairs(pairs(), shares))
        (logps * torch.linspace(-1, 2, len(logps), dtype=dtype)).sum().backward()
        found.append((logps.detach(), gradient_norm(model)))
        model.zero_grad()
    torch.testing.assert_close(found[1][0], found[0][0], rtol=exact, atol=exact)
    assert found[1][1] == pytest.approx(found[0][1], rel=exact)


def test_with_activations_computed_again(small_models: Any, gradient_norm: Any) -> None:
    """Gradient checkpointing carries the prefixes through."""
    norms = []
    for again in (False, True):
        model = small_models["qwen3"].make(torch.float64).train()
        scorer = Scorer(model)
        scorer.choose()
        if again:
            model.activation_checkpointing_enable({"use_reentrant": False})
        scorer.logps(collate_pairs(pairs(), Always())).sum().backward()
        norms.append(gradient_norm(model))
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)


def test_models_whose_tokens_see_more_than_attention_shows(small_models: Any) -> None:
    """Position biases, a convolution along the row: padded, and so nothing is shared; asked for, it is an error."""
    import transformers as t

    shape = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
    for model in (small_models["bloom"].make(), t.Lfm2ForCausalLM(t.Lfm2Config(**shape))):
        scorer = Scorer(model)
        scorer.choose()
        assert not scorer.shares
        assert sharing(scorer, "auto") is None
        with pytest.raises(UsageError, match="share_prompt is true, and this model would not compute the same"):
            sharing(scorer, True)


def test_a_model_that_drops_the_prefixes_is_found_out(small_models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one would whose code passes on only what it knows."""
    honest = attention.varlen_attention

    def forgetful(*args: Any, prefixes: Any = None, **options: Any) -> Any:
        return honest(*args, **options)

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, forgetful)
    scorer = Scorer(small_models["llama"].make())
    scorer.choose()
    assert scorer.packed
    assert not scorer.shares


def test_scores_are_read_at_the_same_tokens() -> None:
    """Also where padding ends an answer, is all of it, or reaches into the prompt."""
    import transformers as t

    config = t.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, pad_token_id=0)
    config.num_attention_heads, config.num_key_value_heads, config.num_labels = 4, 4, 1
    torch.manual_seed(0)
    model = t.LlamaForSequenceClassification(config).double().eval()
    scorer = RewardScorer(model)
    scorer.choose()
    assert scorer.shares
    rows = pairs()
    rows[0]["rejected_ids"][-2:] = 0
    rows[2]["rejected_ids"][:] = 0
    rows[2]["prompt_ids"][-2:] = 0
    rows[3]["rejected_ids"][:], rows[3]["prompt_ids"][:] = 0, 0
    rows[3]["chosen_ids"][:] = 0
    with torch.no_grad():
        alone, shared = (scorer.rewards(collate_pairs(rows, shares)) for shares in (None, Always()))
    torch.testing.assert_close(shared, alone, rtol=1e-12, atol=1e-12)


# ---- what it costs ----


def test_the_prompt_is_counted_once(small_models: Any) -> None:
    """Operations of the matrix products, forward and backward, against those of so many tokens."""
    model = small_models["llama"].make()
    scorer = Scorer(model)
    scorer.choose()
    rows = pairs([(40, 5, 7), (30, 8, 3)])
    linear, counted = 3 * 2 * Cost.of(model).weights, []
    for shares in (None, Always()):
        batch = collate_pairs(rows, shares)
        with FlopCounterMode(display=False) as counter:
            scorer.logps(batch).sum().backward()
        per_product = counter.get_flop_counts()["Global"]
        products = sum(count for operation, count in per_product.items() if "attention" not in str(operation))
        counted.append(products)
        if shares is not None:
            assert batch["input_ids"].numel() == (40 + 5) + (1 + 7) + (30 + 8) + (1 + 3)
    # the head is counted in both alike; position embeddings are one product of each token with half a head
    assert counted[0] - counted[1] == pytest.approx(linear * (39 + 29), rel=0.01)


SMOLLM2 = Cost(weights=106_168_320, width=576, layers=30, masked=False)


@pytest.mark.parametrize(
    ("prompt", "rejected", "parts", "mask"),
    [
        (396, 241, True, True),  # the means of dpo_en_demo
        (60, 47, True, True),
        (48, 700, True, False),  # PERFORMANCE.md: sharing lost under a mask
        (8, 700, False, False),
        (8, 16, True, True),
        (2, 4, False, False),
        (1, 1, False, False),
    ],
)
def test_what_pays(prompt: int, rejected: int, parts: bool, mask: bool) -> None:
    """For smollm2; measured in forward and backward passes of one layer."""
    assert SMOLLM2(prompt, rejected) is parts
    assert Cost(106_168_320, 576, 30, masked=True)(prompt, rejected) is mask


def test_the_cost_is_the_models(small_models: Any) -> None:
    """Weights of linear layers by transformers' own count; adapters change nothing, so that references are kept."""
    from peft import LoraConfig, get_peft_model

    model = small_models["llama"].make()
    expected = sum(
        tensor.numel() for name, tensor in model.model.named_parameters() if tensor.dim() == 2 and "embed" not in name
    )
    cost = Cost.of(model)
    assert cost == Cost(weights=expected, width=32, layers=3, masked=False)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=4))
    assert Cost.of(adapted.get_base_model()) == cost
    model.config.attention_dropout = 0.1
    assert Cost.of(model).masked


def test_branches_need_their_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another torch may not have it: attention goes under a mask then."""
    monkeypatch.setattr(branches, "_BACKWARD", None)
    assert not branches.available(torch.device("cpu"))
    given = tensors()
    torch.testing.assert_close(ours(*given), plain(*given), rtol=1e-12, atol=1e-12)
