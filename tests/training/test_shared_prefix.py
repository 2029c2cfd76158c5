"""Beginnings that sequences share: the layout, attention, the models that allow it, and when it pays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ft_plugins.backends.cpu import attention as blocked
from ft_plugins.backends.cpu.runtime import CpuRuntime
from ftcore.errors import UsageError
from ftcore.training.attention import varlen as attention
from ftcore.training.backend import BackendRuntime
from ftcore.training.batching.collators import IGNORED, Batch, collate, tokens_read
from ftcore.training.batching.pairs import collate_pairs
from ftcore.training.batching.shared_prefix import PrefixSharingCollator, longest_common, share_prefixes
from ftcore.training.cost_model.prefix import AlwaysShare, PrefixCost, sharing_rule
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.forward.reward import RewardForward
from ftcore.training.model_transforms.recomputation import enable_recomputation

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft 0.21's
    pytest.mark.usefixtures("torchs_products"),
]

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
    for (start, end), ranges in zip(pairwise(starts), batch.get("prefixes", [()] * (len(starts) - 1)), strict=True):
        places = [*(place for some in ranges for place in range(*some)), *range(start, end)]
        where = batch["position_ids"][0, places].tolist()
        labels = {
            int(batch["position_ids"][0, place]): (int(batch["labels"][0, place]), float(batch["weights"][0, place]))
            for place in range(start, end)
            if batch["labels"][0, place] != IGNORED
        }
        found.append({"ids": batch["input_ids"][0, places].tolist(), "positions": where, "labels": labels})
    return found


# ---- the layout ----


def same_tokens(one: Batch, other: Batch) -> None:
    """The same sequences and labels, in the same order, whatever is shared; each label stands in one place."""
    assert sequences_of(one) == sequences_of(other)
    assert one["index"] == other["index"]
    assert len(one["positions"]) == len(other["positions"]) == len(set(one["positions"].tolist()))
    assert one["positions"].tolist() == one["weights"][0].nonzero()[:, 0].tolist()
    for name in ("labels", "weights"):
        assert torch.equal(one[name][0, one["positions"]], other[name][0, other["positions"]])
    assert tokens_read(one) == tokens_read(other) == other["input_ids"].numel()


@given(
    lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    threshold=st.integers(0, 9),
)
def test_every_pair_is_there_exactly_once(lengths: list[tuple[int, int, int]], seed: int, threshold: int) -> None:
    rows = pairs(lengths, vocabulary=10**6, seed=seed)  # nothing but the pairs' prompts begins alike
    alone = collate_pairs(rows)
    once = share_prefixes(alone, lambda common, own: common > threshold)
    same_tokens(once, alone)
    assert torch.equal(once["pair_weights"], alone["pair_weights"])
    saved = sum(prompt - 1 for prompt, _, _ in lengths if prompt - 1 > threshold)
    assert alone["input_ids"].numel() - once["input_ids"].numel() == saved
    assert ("prefixes" in once) == (saved > 0)


@given(
    texts=st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=9), min_size=1, max_size=9),
    prompts=st.lists(st.integers(0, 9), min_size=9, max_size=9),
)
def test_every_row_is_there_exactly_once(texts: list[list[int]], prompts: list[int]) -> None:
    """Rows that begin alike by chance, over and over; what is computed is a tree's nodes, labels aside."""
    rows = [
        {"input_ids": np.array(text, np.int32), "weights": (np.arange(len(text)) >= prompt).astype(np.float32)}
        for text, prompt in zip(texts, prompts, strict=False)
    ]
    alone = collate([{**row, "index": number} for number, row in enumerate(rows)])
    once = share_prefixes(alone, AlwaysShare())
    same_tokens(once, alone)
    for number, ranges in enumerate(once.get("prefixes", ())):
        starts = once["cu_seqlens"].tolist()
        assert all(first < last <= starts[number] for first, last in ranges)
        assert all(last <= first for (_, last), (first, _) in pairwise(ranges))
    for number, (other, common) in enumerate(longest_common([np.array(text) for text in texts])):
        alike = [
            next(
                (n for n, pair in enumerate(zip(texts[number], text, strict=False)) if pair[0] != pair[1]),
                min(len(text), len(texts[number])),
            )
            for text in texts[:number]
        ]
        assert common == max(alike, default=0)
        assert common == 0 or alike[other] == common
        limit = next((n for n in range(1, len(texts[number])) if rows[number]["weights"][n]), len(texts[number])) - 1
        ranges = once["prefixes"][number] if "prefixes" in once else ()
        assert sum(last - first for first, last in ranges) == min(common, limit)


def test_a_system_prompt_and_a_prompt_within_it() -> None:
    """Two pairs under one system prompt, and a batch within the batch; a pack shares as rows do."""
    system, asked = [1, 2, 3, 4], ([5, 6, 7], [8, 9])
    rows = []
    for number, prompt in enumerate(asked):
        row: dict[str, Any] = {"prompt_ids": np.array([*system, *prompt], np.int32), "index": number}
        for name, answer in (("chosen", [10 + number, 12]), ("rejected", [20 + number])):
            row |= {f"{name}_ids": np.array(answer, np.int32), f"{name}_weights": np.ones(len(answer), np.float32)}
        rows.append(row)
    batch = share_prefixes({**collate_pairs(rows), "inside": collate_pairs(rows)}, AlwaysShare())
    for one in (batch, batch["inside"]):
        assert one["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 10, 12, 8, 9, 11, 12, 7, 20, 9, 21]]
        assert one["position_ids"].tolist() == [[*range(9), 4, 5, 6, 7, 6, 7, 5, 6]]
        assert one["prefixes"] == ((), ((0, 4),), ((0, 6),), ((0, 4), (9, 10)))
        assert one["cu_seqlens"].tolist() == [0, 9, 13, 15, 17]
        assert one["max_len"] == 9
    pack = {
        "input_ids": np.array([1, 2, 3, 7, 1, 2, 4, 8], np.int32),
        "weights": np.array([0, 0, 0, 1] * 2, np.float32),
    }
    packed = share_prefixes(collate([pack | {"lengths": [4, 4], "index": np.array([0, 1])}]), AlwaysShare())
    assert packed["input_ids"].tolist() == [[1, 2, 3, 7, 4, 8]]
    assert packed["prefixes"] == ((), ((0, 2),))


def test_rows_with_images_stay_whole() -> None:
    """They are computed one by one, and each needs all its tokens."""
    row = {"input_ids": np.array([1, 2, 3, 4], np.int32), "weights": np.array([0, 0, 0, 1], np.float32), "index": 0}
    batch = {**collate([row, row]), "images": [{}, {}]}
    assert share_prefixes(batch, AlwaysShare()) == batch


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
    scorer = CausalLMForward(model, CpuRuntime())
    scorer.probe_capabilities()
    assert scorer.shares
    found = []
    for shares in (None, AlwaysShare()):
        logps = scorer.logps(PrefixSharingCollator(collate_pairs, shares)(pairs()))
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
        scorer = CausalLMForward(model, CpuRuntime())
        scorer.probe_capabilities()
        if again:
            enable_recomputation(model)
        scorer.logps(share_prefixes(collate_pairs(pairs()), AlwaysShare())).sum().backward()
        norms.append(gradient_norm(model))
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)


def test_models_whose_tokens_see_more_than_attention_shows(small_models: Any) -> None:
    """Position biases, a convolution along the row: padded, and so nothing is shared; asked for, it is an error."""
    import transformers as t

    shape = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
    for model in (small_models["bloom"].make(), t.Lfm2ForCausalLM(t.Lfm2Config(**shape))):
        scorer = CausalLMForward(model, CpuRuntime())
        scorer.probe_capabilities()
        assert not scorer.shares
        assert sharing_rule(scorer, "auto") is None
        with pytest.raises(UsageError, match="share_prompt is true, and the model does not reproduce"):
            sharing_rule(scorer, True)


def test_a_model_that_drops_the_prefixes_is_found_out(small_models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one would whose code passes on only what it knows."""
    honest = attention.varlen_attention

    def forgetful(*args: Any, prefixes: Any = None, **options: Any) -> Any:
        return honest(*args, **options)

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, forgetful)
    scorer = CausalLMForward(small_models["llama"].make(), CpuRuntime())
    scorer.probe_capabilities()
    assert scorer.packed
    assert not scorer.shares


def test_scores_are_read_at_the_same_tokens() -> None:
    """Also where padding ends an answer, is all of it, or reaches into the prompt."""
    import transformers as t

    config = t.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, pad_token_id=0)
    config.num_attention_heads, config.num_key_value_heads, config.num_labels = 4, 4, 1
    torch.manual_seed(0)
    model = t.LlamaForSequenceClassification(config).double().eval()
    scorer = RewardForward(model, CpuRuntime())
    scorer.probe_capabilities()
    assert scorer.shares
    rows = pairs()
    rows[0]["rejected_ids"][-2:] = 0
    rows[2]["rejected_ids"][:] = 0
    rows[2]["prompt_ids"][-2:] = 0
    rows[3]["rejected_ids"][:], rows[3]["prompt_ids"][:] = 0, 0
    rows[3]["chosen_ids"][:] = 0
    with torch.no_grad():
        alone, once = (
            scorer.rewards(PrefixSharingCollator(collate_pairs, shares)(rows)) for shares in (None, AlwaysShare())
        )
    torch.testing.assert_close(once, alone, rtol=1e-12, atol=1e-12)


# ---- what it costs ----


def test_the_prompt_is_counted_once(small_models: Any) -> None:
    """Operations of the matrix products, forward and backward, against those of so many tokens."""
    model = small_models["llama"].make()
    scorer = CausalLMForward(model, CpuRuntime())
    scorer.probe_capabilities()
    rows = pairs([(40, 5, 7), (30, 8, 3)])
    linear, counted = 3 * 2 * PrefixCost.of(model, CpuRuntime()).weights, []
    for shares in (None, AlwaysShare()):
        batch = PrefixSharingCollator(collate_pairs, shares)(rows)
        with FlopCounterMode(display=False) as counter:
            scorer.logps(batch).sum().backward()
        per_product = counter.get_flop_counts()["Global"]
        products = sum(count for operation, count in per_product.items() if "attention" not in str(operation))
        counted.append(products)
        if shares is not None:
            assert batch["input_ids"].numel() == (40 + 5) + (1 + 7) + (30 + 8) + (1 + 3)
    # the head is counted in both alike; position embeddings are one product of each token with half a head
    assert counted[0] - counted[1] == pytest.approx(linear * (39 + 29), rel=0.01)


SMOLLM2 = PrefixCost(weights=106_168_320, width=576, layers=30, masked=False)


@pytest.mark.parametrize(
    ("common", "own", "parts", "mask"),
    [
        (395, 242, True, True),  # the means of dpo_en_demo
        (59, 48, True, True),
        (24, 150, True, True),  # a system prompt before alpaca's rows
        (47, 701, True, False),  # PERFORMANCE.md: sharing lost under a mask
        (7, 701, False, False),
        (7, 17, True, True),
        (1, 5, False, False),
        (1, 2, False, False),
    ],
)
def test_what_pays(common: int, own: int, parts: bool, mask: bool) -> None:
    """For smollm2; measured in forward and backward passes of one layer."""
    assert SMOLLM2(common, own) is parts
    assert PrefixCost(106_168_320, 576, 30, masked=True)(common, own) is mask


def test_the_cost_is_the_models(small_models: Any) -> None:
    """Weights of linear layers by transformers' own count; adapters change nothing, so that references are kept."""
    from peft import LoraConfig, get_peft_model

    model = small_models["llama"].make()
    expected = sum(
        tensor.numel() for name, tensor in model.model.named_parameters() if tensor.dim() == 2 and "embed" not in name
    )
    cost = PrefixCost.of(model, CpuRuntime())
    assert cost == PrefixCost(weights=expected, width=32, layers=3, masked=False)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=4))
    assert PrefixCost.of(adapted.get_base_model(), CpuRuntime()) == cost
    model.config.attention_dropout = 0.1
    assert PrefixCost.of(model, CpuRuntime()).masked


def test_plain_attention_masks_prefixes(small_models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's does, and the CPU's where another torch does not have the kernel."""
    model = small_models["llama"].make()
    assert PrefixCost.of(model, BackendRuntime()).masked
    monkeypatch.setattr(blocked, "_BACKWARD", None)
    assert PrefixCost.of(model, CpuRuntime()).masked
