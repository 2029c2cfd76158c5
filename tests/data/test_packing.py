"""Packs lose nothing and double nothing, and no document sees another (R16)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftcore.api.samples import Place
from ftcore.data.datasets.packing import PackedDataset, Segments, fill, fill_and_split
from ftcore.data.datasets.token_dataset import TokenDataset
from ftcore.data.pipeline.loading import chat_datasets
from ftcore.data.storage.arrays import Table, TokenizedRow
from ftcore.errors import UsageError
from ftcore.training.batching.collators import collate


def dataset(lengths: list[int], seed: int = 0) -> TokenDataset:
    """Every token its own number, so that each can be followed; about a third is not trained."""
    random = np.random.default_rng(seed)
    rows, first = [], 0
    for number, length in enumerate(lengths):
        ids = np.arange(first, first + length, dtype=np.int32)
        weights = random.choice([0, 0.5, 1], length).astype(np.float32)
        rows.append(TokenizedRow(Place("f", number + 1), ids, weights, np.zeros(length, np.uint8)))
        first += length
    return TokenDataset([Table.of(rows)])


def predictions(items: Any) -> Counter[tuple[int, int, float]]:
    """``(token before, token, weight)`` of everything that is trained."""
    batch = collate([items[number] for number in range(len(items))])
    ids, labels, weights = (batch[name][0].tolist() for name in ("input_ids", "labels", "weights"))
    return Counter((one, label, weight) for one, label, weight in zip(ids, labels, weights, strict=True) if weight)


def pieces(segments: Segments) -> list[list[tuple[int, int, int]]]:
    whole = list(zip(*(array.tolist() for array in segments[:3]), strict=True))
    return [whole[a:b] for a, b in zip(segments.packs[:-1], segments.packs[1:], strict=True)]


def test_by_hand() -> None:
    assert pieces(fill(np.array([3, 5, 2, 8, 1, 4]), 8)) == [
        [(0, 0, 3), (1, 0, 5)],
        [(2, 0, 2), (4, 0, 1), (5, 0, 4)],
        [(3, 0, 8)],
    ]
    assert pieces(fill_and_split(np.array([3, 6, 12, 1]), 8)) == [
        [(0, 0, 3), (1, 0, 5)],
        [(1, 4, 6), (2, 0, 6)],
        [(2, 5, 12), (3, 0, 1)],
    ]
    # One free token is of no use to a row that goes on.
    assert pieces(fill_and_split(np.array([7, 4]), 8)) == [[(0, 0, 7)], [(1, 0, 4)]]
    assert pieces(fill(np.array([], dtype=np.int64), 8)) == []
    assert pieces(fill_and_split(np.array([], dtype=np.int64), 8)) == []


lengths = st.lists(st.integers(1, 20), max_size=40)


@given(lengths=lengths, size=st.integers(20, 60))
def test_whole_rows(lengths: list[int], size: int) -> None:
    rows = dataset(lengths)
    packed = PackedDataset.of(rows, size, split=False)
    segments = packed.segments
    assert sorted(segments.rows.tolist()) == list(range(len(lengths)))
    assert (segments.ends - segments.starts).tolist() == [lengths[row] for row in segments.rows]
    assert all(0 < length <= size for length in packed.lengths)
    assert packed.lengths.sum() == sum(lengths)
    # Any two packs together are more than one: else they would be one.
    assert all(a + b > size for number, a in enumerate(packed.lengths) for b in packed.lengths[number + 1 :])
    if lengths:
        assert predictions(packed) == predictions(rows)
        firsts = [min(rows) for rows in np.split(segments.rows, segments.packs[1:-1])]
        assert firsts == sorted(firsts)


@given(lengths=st.lists(st.integers(1, 90), max_size=20), size=st.integers(2, 40))
def test_split_rows(lengths: list[int], size: int) -> None:
    rows = dataset(lengths)
    packed = PackedDataset.of(rows, size, split=True)
    assert all(0 < length <= size for length in packed.lengths)
    assert all(length >= size - 1 for length in packed.lengths[:-1])
    if lengths:
        assert predictions(packed) == predictions(rows)


def test_packs_are_full_and_the_same_every_time() -> None:
    random = np.random.default_rng(1)
    sizes = np.minimum(random.lognormal(5, 0.6, 20_000).astype(int) + 10, 1024)
    one, other = fill(sizes, 1024), fill(sizes, 1024)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert sizes.sum() / ((len(one.packs) - 1) * 1024) > 0.995


def test_an_item_is_several_rows() -> None:
    rows = dataset([3, 5, 2])
    packed = PackedDataset.of(rows, 8, split=False)
    item = packed[0]
    assert item["input_ids"].tolist() == list(range(8))
    assert (item["lengths"].tolist(), item["index"].tolist()) == ([3, 5], [0, 1])
    batch, plain = collate([packed[0], packed[1]]), collate([rows[0], rows[1], rows[2]])
    assert batch.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(batch[name], value) if isinstance(value, torch.Tensor) else batch[name] == value
    assert str(packed.places[batch["index"][2]]) == "f row 3"
    with pytest.raises(IndexError):
        packed[2]


def test_fingerprints_tell_packs_apart() -> None:
    rows = dataset([3, 5, 2, 9])
    prints = {PackedDataset.of(rows, size, split=split).fingerprint for size in (11, 12) for split in (False, True)}
    prints |= {rows.fingerprint, PackedDataset.of(dataset([3, 5, 2, 9], seed=1), 11, split=False).fingerprint}
    assert len(prints) == 6


def test_documents_do_not_see_each_other(tiny_model_dir: Path) -> None:
    """R16: another token in one document changes the logits of no other by a single bit."""
    from transformers import AutoModelForCausalLM

    from ftcore.training.forward.causal_lm import CausalLMForward

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    CausalLMForward(model).probe_capabilities()
    sizes = [9, 30, 1, 17, 5]

    def logits(ids: list[np.ndarray]) -> list[torch.Tensor]:
        rows = [
            TokenizedRow(Place("f", 1), one, np.ones(len(one), np.float32), np.zeros(len(one), np.uint8)) for one in ids
        ]
        packed = PackedDataset.of(TokenDataset([Table.of(rows)]), 64, split=False)
        assert len(packed) == 1
        batch = collate([packed[0]])
        with torch.no_grad():
            found = model(
                input_ids=batch["input_ids"],
                position_ids=batch["position_ids"],
                cu_seq_lens_q=batch["cu_seqlens"],
                cu_seq_lens_k=batch["cu_seqlens"],
                max_length_q=batch["max_len"],
                max_length_k=batch["max_len"],
                use_cache=False,
            ).logits[0]
        return list(found.split(batch["cu_seqlens"].diff().tolist()))

    random = np.random.default_rng(0)
    ids = [random.integers(3, 400, size).astype(np.int32) for size in sizes]
    before = logits(ids)
    for changed in range(len(sizes)):
        other = [one.copy() for one in ids]
        other[changed][0] += 1
        after = logits(other)
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert same == [number != changed for number in range(len(sizes))]


# ---- from a plan ----


def write(folder: Path, name: str, texts: list[str], key: str = "") -> None:
    rows = [{"text": text} if not key else {"instruction": "q", "output": text} for text in texts]
    (folder / name).write_text("\n".join(map(json.dumps, rows)))


def test_conversations(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.jsonl", ["one " * number for number in range(1, 30)], "output")
    plain = chat_datasets(make_plan("a.jsonl", cutoff_len=100), tokenizer)
    for options in ({"packing": True}, {"neat_packing": True}):
        data = chat_datasets(make_plan("a.jsonl", cutoff_len=100, val_size=9, **options), tokenizer)
        assert isinstance(data.train, PackedDataset)
        assert isinstance(data.eval, PackedDataset)
        assert (len(data.train.dataset), len(data.eval.dataset)) == (20, 9)
        assert data.train.lengths.max() <= 100
        together = predictions(data.train) + predictions(data.eval)
        assert together == predictions(plain.train)
        assert data.accounting.summary().split("\n")[-2:] == [
            f"20 rows in {len(data.train)} packs of 100 tokens, {data.train.lengths.sum() / len(data.train):.1f}% full",
            f"evaluation: 9 rows in {len(data.eval)} packs of 100 tokens, "
            f"{data.eval.lengths.sum() / len(data.eval):.1f}% full",
        ]
    assert isinstance(chat_datasets(make_plan("a.jsonl", packs=True, packing=False), tokenizer).train, TokenDataset)


def test_texts(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    """Split, none of a long text is lost; kept together, it is cut as without packs."""
    write(tmp_path, "a.jsonl", ["word " * 200, "short", "other " * 30])
    base = {"samples": "Text", "template": None, "cutoff_len": 64}
    plain, whole = (chat_datasets(make_plan("a.jsonl", **base | more), tokenizer) for more in ({}, {"cutoff_len": 999}))
    split = chat_datasets(make_plan("a.jsonl", packs=True, **base), tokenizer)
    assert predictions(split.train) == predictions(whole.train)
    assert split.accounting.train == whole.accounting.train
    kept = chat_datasets(make_plan("a.jsonl", packs=True, packing_split=False, **base), tokenizer)
    assert predictions(kept.train) == predictions(plain.train)
    assert kept.accounting.train[0].truncated == 2
    assert split.train.lengths.max() == kept.train.lengths.max() == 64


def test_several_datasets_are_mixed_after_the_split(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    """So no row that is trained on, again and again, is evaluated on."""
    write(tmp_path, "a.jsonl", [f"a{number}" for number in range(6)], "output")
    write(tmp_path, "b.jsonl", [f"b{number}" for number in range(20)], "output")
    options = {"mix_strategy": "interleave_over", "val_size": 6, "seed": 3}
    data = chat_datasets(make_plan("a.jsonl,b.jsonl", **options), tokenizer)
    texts = [
        [tokenizer.decode(part[i]["input_ids"])[-17:] for i in range(len(part))] for part in (data.train, data.eval)
    ]
    assert not set(texts[0]) & set(texts[1])
    assert len(set(texts[0])) == 20
    taken = Counter("a" if "\na" in text else "b" for text in texts[0])
    assert taken["a"] == taken["b"] == len(texts[0]) // 2
    note = f"interleave_over: {len(texts[0])} rows, {taken['a']} of a.jsonl, {taken['b']} of b.jsonl"
    assert data.accounting.notes == (note,)
    again = chat_datasets(make_plan("a.jsonl,b.jsonl", **options), tokenizer)
    assert again.train.fingerprint == data.train.fingerprint
    with pytest.raises(UsageError, match=r"val_size takes all rows of dataset 'a.jsonl'; write a smaller val_size"):
        chat_datasets(make_plan("a.jsonl,b.jsonl", **options | {"val_size": 25}), tokenizer)
    under = chat_datasets(make_plan("a.jsonl,b.jsonl", mix_strategy="interleave_under"), tokenizer)
    assert [place.file[-7:] for place in under.train.places] == ["a.jsonl", "b.jsonl"] * 6
