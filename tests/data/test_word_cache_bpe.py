"""Words cut and remembered give the very tokens and offsets that ``tokenizers`` gives."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from ftcore.data.tokenization import word_cache_bpe as words_module
from ftcore.data.tokenization.word_cache_bpe import CachedBPE

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "the quick brown fox's jumps  over 123456 lazy dogs.\n\n  We'll see\tthat\r\n",
    "Él está aquí, naïve café; Größe straße. Привет, мир! שלום עולם «quoted» — dash… €5 §2 ½ ²",
    "x = foo(bar)[0] # comment\n    return {'a': 1.5e-3, \"b\": None}\n",
    "नमस्ते दुनिया مرحبا بالعالم ΑΒΓ αβγ",
]
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|im")


def level(use_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level(False)])


WAYS: dict[str, tuple[Any, Any, Any]] = {
    "gpt2": (level(True), None, processors.ByteLevel(trim_offsets=True, add_prefix_space=False)),
    "digits": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level(True)]), None, None),
    "llama3": (split(LLAMA3), None, processors.Sequence([processors.ByteLevel(trim_offsets=False)])),
    "qwen2": (split(QWEN2), normalizers.NFC(), processors.ByteLevel(trim_offsets=False, add_prefix_space=False)),
    "o200k": (split(O200K), None, None),
}


@lru_cache
def backend(way: str) -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, normalizer, processor = WAYS[way]
    if normalizer:
        made.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if way == "digits":
        alphabet = [one for one in alphabet if one not in ("Ą", "ć")]  # bytes 4 and 7: SmolLM2's vocabulary lacks them
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens([AddedToken(one, normalized=False) for one in SPECIAL])
    if processor:
        made.post_processor = processor
    return made


@lru_cache
def cutter(way: str) -> CachedBPE:
    made = CachedBPE.of(backend(way))
    assert made is not None
    return made


def agree(way: str, texts: list[str]) -> int:
    """How many of the texts were cut."""
    texts = [text for text in texts if cutter(way).covers(text)]
    expected = backend(way).encode_batch(texts, add_special_tokens=False)
    cut = 0
    for text, found, right in zip(texts, cutter(way).encode(texts), expected, strict=True):
        if found is None:
            continue
        cut += 1
        ids, starts, ends = (array.tolist() for array in found)
        assert ids == right.ids, text
        assert list(zip(starts, ends, strict=True)) == right.offsets, text
    return cut


ascii_text = st.text(st.characters(max_codepoint=127), max_size=40)
pieces = st.sampled_from(
    [*SPECIAL, *" \n\t\r'9", "'ll", "'S", "ſ", "'ſ", " 's", "aB", "é", "e\u0301", "\u0660", "\u2028", "ǅ"]
)
texts = st.lists(st.lists(ascii_text | pieces | st.text(max_size=8), max_size=8).map("".join), max_size=6)


@pytest.mark.parametrize("way", WAYS)
def test_real_texts(way: str) -> None:
    assert agree(way, TEXTS) == len(TEXTS)
    whole = "".join(f"<|im_start|>user\n{text}<|im_end|>\n" for text in TEXTS)
    assert agree(way, [whole, "", whole * 3, "a"]) == 4


@given(way=st.sampled_from(sorted(WAYS)), texts=texts)
def test_any_text(way: str, texts: list[str]) -> None:
    agree(way, texts)


def test_what_is_not_covered() -> None:
    covered = [cutter("gpt2").covers(text) for text in ("plain", "Größe — …", "你好", "ไทย", "😀", "e\u0301", "\u0378")]
    assert covered == [True, True, False, False, False, False, False]


def test_a_byte_that_the_vocabulary_lacks() -> None:
    assert [found is None for found in cutter("digits").encode(["a\x04b", "ab", "\x07"])] == [True, False, True]


def test_the_memory_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "_MOST", 30)
    made = CachedBPE.of(backend("gpt2"))
    assert made is not None
    words = [" ".join(f"w{number}x{row}" for number in range(20)) for row in range(10)]
    for _ in range(2):
        for text in words:
            (found,) = made.encode([text])
            assert found is not None
            assert found[0].tolist() == backend("gpt2").encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        *(
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False},
                        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                    ],
                }
            }
            for pattern, behavior in (
                ({"Regex": r"\p{Han}+|\s+"}, "Isolated"),
                ({"Regex": r"(?<=a)b|\s+"}, "Isolated"),
                ({"Regex": r"\p{L}++|\s+"}, "Isolated"),
                ({"Regex": r"\w+"}, "Isolated"),
                ({"Regex": r".|\s+"}, "Isolated"),
                ({"Regex": r"\p{L}+|\s+"}, "Removed"),
                ({"String": " "}, "Isolated"),
            )
        ),
    ],
)
def test_what_is_left_to_the_backend(change: dict[str, Any]) -> None:
    described = json.loads(backend("gpt2").to_str()) | change
    assert CachedBPE.of(Tokenizer.from_str(json.dumps(described))) is None


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_take_their_surroundings(flag: str) -> None:
    made = Tokenizer.from_str(backend("gpt2").to_str())
    made.add_tokens([AddedToken("<x>", **{flag: True})])
    assert CachedBPE.of(made) is None


def test_a_text_that_is_not_cut_everywhere() -> None:
    described = json.loads(backend("gpt2").to_str())
    described["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{L}+| "}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    made = CachedBPE.of(Tokenizer.from_str(json.dumps(described)))
    assert made is not None
    gap, whole = made.encode(["a, b", "a b"])
    assert gap is None
    assert whole is not None
    assert all(array.dtype == np.int32 for array in whole)
