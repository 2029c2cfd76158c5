"""Whatever people say: the trained characters are the answers with their ends, and nothing is lost or changed."""

from __future__ import annotations

from typing import Any

import pytest
from documentation import PAGE, page
from harness import BY_NAME, Rendering, ours
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.api.components import ChatTemplate

# Templates cut blanks off contents, and some look for thoughts between tags: both are tested elsewhere.
TEXT = st.text(st.characters(exclude_characters="<", exclude_categories=("Cs", "Co")), min_size=1)
TURN = TEXT.map(str.strip).filter(bool)
TURNS = st.lists(st.tuples(TURN, TURN), min_size=1, max_size=4)


def rendered(template: ChatTemplate, turns: list[tuple[str, str]]) -> Rendering:
    from conversations import Case

    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return ours(template, Case(messages=messages))


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
@settings(max_examples=8)
@given(turns=TURNS)
def test_contents_are_written_as_they_are(name: str, turns: list[tuple[str, str]]) -> None:
    template = BY_NAME[name]
    places = [(f"\ue000question{number}\ue000", f"\ue000answer{number}\ue000") for number in range(len(turns))]
    layout, actual = rendered(template, places), rendered(template, turns)
    assert not actual.refused
    for piece in layout.said:
        assert piece.count("\ue000") == 2
    expected = []
    for piece in layout.pieces:
        for place, text in zip(sum(places, ()), sum(turns, ()), strict=True):
            piece = piece.replace(place, text)
        expected.append(piece)
    assert actual.pieces == tuple(expected)


def test_the_page_is_up_to_date() -> None:
    """Otherwise: python tests/templates/documentation.py."""
    assert PAGE.read_text(encoding="utf-8") == page()
