"""Stop sequences are found whatever pieces the text comes in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ftcore.serving.stops import StopText, overlap


def shown(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    stopper = StopText(stops)
    text = "".join(stopper.add(piece) for piece in pieces)
    return (text if stopper.found else text + stopper.rest()), stopper.found


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """The first place at which some sequence is complete, letter by letter."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_pieces_do_not_matter(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert shown(pieces, stops) == reference(text, stops)


def test_text_that_may_begin_a_sequence_waits() -> None:
    stopper = StopText(["END"])
    assert [stopper.add(piece) for piece in ("one E", "N", " two EN", "D", "more")] == ["one ", "", "EN two ", "", ""]
    assert stopper.found


def test_overlap() -> None:
    assert [overlap("abab", one) for one in ("abc", "ab", "b", "babx", "x")] == [2, 0, 0, 3, 0]
