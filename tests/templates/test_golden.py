"""Every template against its golden renderings, which oracles.py wrote when they agreed with the makers' templates."""

from __future__ import annotations

from typing import Any

import pytest
from conversations import CASES
from harness import BY_NAME, GOLDEN, cases, ours, read_golden
from oracle_map import ENTRIES, reason


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_renderings(name: str) -> None:
    template = BY_NAME[name]
    assert {case: ours(template, CASE).as_json() for case, CASE in cases(template).items()} == read_golden(name)


def stopped(answers: tuple[str, ...], entry: dict[str, Any]) -> tuple[str, ...]:
    """The answers that end with a stop token."""
    return {"every": answers, "last": answers[-1:], "none": ()}[entry.get("stops", "every")]


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_what_the_model_says(name: str) -> None:
    """One span per answer, each ending with a stop token; prompt, answer and blanks are the text."""
    template, entry = BY_NAME[name], ENTRIES[name]
    exceptions = entry.get("prompts", {})
    excused = set()
    for case_name, case in cases(template).items():
        rendering = ours(template, case)
        if rendering.refused:
            assert case_name not in ("one_turn", "many_turns"), rendering.refused
            continue
        answers = [message for message in case.messages if message["role"] == "assistant"]
        assert len(rendering.said) == len(answers), case_name
        for said in stopped(rendering.said, entry):
            assert said.endswith(template.stop or entry["tokens"]["eos_token"]), (case_name, said)
        if rendering.prompt + rendering.said[-1] != rendering.text.rstrip():
            assert reason(exceptions, case_name), f"{case_name}: {rendering.prompt!r} is not where the answer begins"
            excused.add(case_name)
    stale = [pattern for pattern in exceptions if not any(reason({pattern: "?"}, case) for case in excused)]
    assert not stale


def test_every_template_is_held_against_something() -> None:
    """Against an oracle, or it says after what it was written."""
    assert set(ENTRIES) == set(BY_NAME) == {file.stem for file in GOLDEN.glob("*.json")}
    for name, entry in ENTRIES.items():
        assert bool(entry.get("oracles")) != bool(entry.get("layout")), name


@pytest.mark.parametrize("name", BY_NAME)
def test_nothing_is_left_out_without_a_word(name: str) -> None:
    """The renderer refuses what the source does not name; so a source names only what it writes, or refuses it."""
    template = BY_NAME[name]
    assert template.tool_dialect or "tools" not in template.source()
    if not template.thinking and "reasoning_content" in template.source():
        assert ours(template, CASES["reasoning"]).refused
