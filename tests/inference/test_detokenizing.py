"""Pieces of text join to the text of all tokens, and none is half a character."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_plugins.engines.transformers.detokenizing import Detokenizer
from ftcore.testing import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def pieces(tokenizer: Any, ids: list[int], skip_special: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special)
    return [*map(detokenizer.add, ids), detokenizer.rest()]


def test_text_comes_when_its_characters_are_whole(tokenizer: Any) -> None:
    ids = tokenizer.encode("🦊 ok")
    assert pieces(tokenizer, ids) == ["", "", "", "🦊", " ", "o", "k", ""]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_joined_pieces_are_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@given(ids=st.lists(st.integers(0, 400), max_size=30), skip=st.booleans())
def test_joined_pieces_are_the_text_of_any_tokens(tokenizer: Any, ids: list[int], skip: bool) -> None:
    assert "".join(pieces(tokenizer, ids, skip)) == tokenizer.decode(ids, skip_special_tokens=skip)
