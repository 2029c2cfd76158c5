"""Sizes and durations are written and read in the same units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.utils.units import DURATIONS, SIZES, as_clock, in_units, parse_duration, parse_size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (999_500, "1 MB"),
        (12_345_678, "12.3 MB"),
        (2_345_000_000, "2.35 GB"),
        (999_400_000_000, "999 GB"),
        (1_234_500_000_000, "1234 GB"),
    ],
)
def test_sizes_have_three_digits(size: float, text: str) -> None:
    assert in_units(size) == text


@given(st.integers(0, 10**15))
def test_what_is_written_is_read_to_three_digits(size: int) -> None:
    assert parse_size(in_units(size)) == pytest.approx(size, rel=0.0051, abs=0.5)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("22kB", 22_000), ("22KB", 22_000), (" 1.5 GB ", 1_500_000_000), ("0.0001kB", 1), ("2TB", 2 * 10**12)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5m", 90), ("12h", 43_200), ("30d", 2_592_000), ("8 w", 4_838_400)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1e3s", "1,5h", "30D", "1h3m", "٣d", "nan s", "inf B", "1 GiB"])
def test_what_has_no_number_or_no_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"such as 30d; units are {', '.join(DURATIONS)}$"):
        parse_duration(text)
    with pytest.raises(ValueError, match=f"such as 20GB; units are {', '.join(SIZES)}$"):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.99, "0:00:00"), (429, "0:07:09"), (3600, "1:00:00"), (176_400, "2 days, 1:00:00")]
)
def test_clocks(seconds: float, text: str) -> None:
    assert as_clock(seconds) == text
