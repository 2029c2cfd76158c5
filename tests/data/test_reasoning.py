"""Thoughts: obeyed where they are off, counted where an answer is trained without its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftcore.api.option_groups import DataOptions
from ftcore.api.samples import Chat, Message, Place
from ftcore.data.chat_template.reasoning import THINK, parted, tags_between, thought_of, without_thoughts
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.pipeline.loading import chat_datasets, feedback_datasets, pair_datasets
from ftcore.data.preprocessing.prepare import Prepared, prepare
from ftcore.errors import RowError

FORGETS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last and message.reasoning_content %}"
    "{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}{{ message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Only the last answer keeps its thought."""
DROPS = FORGETS.replace("message.reasoning_content %}", "false %}").replace("'<think>' + ", "")
"""None does, though the template names thoughts."""


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


ROWS: list[dict[str, Any]] = [
    {"messages": [user("a"), answer("b", reasoning_content="why b"), user("c"), answer("d", thinking="why d")]},
    {"messages": [user("a"), answer("b")]},
    {"messages": [user("a"), answer("<think>\nwhy b\n</think>\n\nb"), user("c"), answer("<think>why d</think>d")]},
    {"messages": [user("a"), answer("b", reasoning="why b", train=False), user("c"), answer("d")]},
    {"messages": [user("a"), answer("b", reasoning_content=" "), user("c"), answer("<think>\n</think>d")]},
]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


@pytest.mark.parametrize(
    ("source", "options", "count", "places"),
    [
        (FORGETS, {}, 2, [1, 3]),
        (FORGETS, {"mask_history": True}, 0, []),
        (DROPS, {}, 4, [1, 3]),
        (FORGETS, {"enable_thinking": False}, 4, [1, 3]),
        (FORGETS, {"enable_thinking": False, "mask_history": True}, 2, [1, 3]),
        (FORGETS, {"enable_thinking": True}, 2, [1, 3]),
    ],
)
def test_answers_without_their_thought_are_counted_in_every_run(
    rows: Path, make_plan: Any, tokenizer: Any, source: str, options: dict[str, Any], count: int, places: list[int]
) -> None:
    tokenizer.chat_template = source
    first, second = (
        chat_datasets(make_plan("a.jsonl", template=None, **options), tokenizer).accounting for _ in range(2)
    )
    assert first.as_dict() == second.as_dict()  # the second one is out of the cache
    (counts,) = first.as_dict()["train"].values()
    assert counts["without_thought"] == count
    assert counts["without_thought_rows"] == [f"{rows}:{place}" for place in places]
    if count:
        many = f"  {count} answers are trained without their reasoning, rows: {len(places)}"
        assert first.summary().splitlines()[-3:] == [many, *(f"    {rows}:{place}" for place in places)]
        assert second.summary() == first.summary()
    else:
        assert "thought" not in first.summary()


def test_preferences_and_feedback_count_their_last_answers(
    rows: Path, make_plan: Any, tokenizer: Any, tmp_path: Path
) -> None:
    sides = {"chosen": answer("<think>x</think>y"), "rejected": answer("z", reasoning_content="w")}
    history = [user("a"), answer("b", reasoning_content="why b"), user("c")]
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": history, **sides}))
    marked = {"messages": [*history, answer("<think>x</think>y")], "kto_tag": True}
    (tmp_path / "k.jsonl").write_text(json.dumps(marked))
    for source, pairs, marks in ((FORGETS, 0, 0), (DROPS, 2, 1)):
        tokenizer.chat_template = source
        plan = make_plan("p.jsonl", template=None, samples="Preference")
        assert pair_datasets(plan, tokenizer).accounting.train[0].thoughtless == pairs
        plan = make_plan("k.jsonl", template=None, samples="Feedback")
        assert feedback_datasets(plan, tokenizer).accounting.train[0].thoughtless == marks


def test_places_are_few_and_counts_are_whole(tmp_path: Path, make_plan: Any, tokenizer: Any, rows: Path) -> None:
    rows.write_text("\n".join([json.dumps(ROWS[0])] * 60))
    tokenizer.chat_template = FORGETS
    plan = make_plan("a.jsonl", template=None, preprocessing_batch_size=7)
    (counts,) = chat_datasets(plan, tokenizer).accounting.train
    assert (counts.thoughtless, counts.thoughtless_rows) == (60, 60)
    assert [place.row for place in counts.thoughtless_places] == list(range(1, 21))
    assert counts.lines()[-1] == "    and 55 more"


def test_a_thought_beyond_the_cut_is_not_counted(tokenizer: Any) -> None:
    tokenizer.chat_template = FORGETS
    turns = (user("a"), answer("b" * 100), user("c"), answer("d", reasoning="why"), user("e"), answer("f"))
    chat = Chat(tuple(Message(turn["role"], turn["content"], turn.get("reasoning")) for turn in turns))
    renderer = Renderer(tokenizer, FORGETS)
    for cutoff, count in ((2000, 1), (30, 0)):
        ((_, row),) = prepare([(Place("x", 1), chat)], renderer, DataOptions(cutoff_len=cutoff))
        assert isinstance(row, Prepared)
        assert row.thoughtless == count


def test_nothing_but_a_thought_is_a_bad_row_where_thinking_is_off() -> None:
    messages = (Message("user", "a"), Message("assistant", "<think>x</think>\n"))
    with pytest.raises(RowError) as caught:
        without_thoughts(messages)
    assert str(caught.value).startswith("answer 2 contains only reasoning, and enable_thinking is false")
    untrained = (messages[0], Message("assistant", "<think>x</think>\n", train=0.0))
    assert without_thoughts(untrained)[1].content == ""


def test_tags_of_a_template() -> None:
    assert tags_between("<|im_start|>assistant\n<think>\n", "\n</think>\n\n!") == (THINK,)
    own = tags_between("<s>[THINK]", "[/THINK]!")
    assert own == (THINK, ("[THINK]", "[/THINK]"))
    assert tags_between("Thought: ", "\nAnswer: !") == (THINK,)
    assert parted("[THINK]a[/THINK]b", own) == ("a", "b")
    assert parted("[THINK]a[/THINK]b") == (None, "[THINK]a[/THINK]b")
    assert thought_of(Message("assistant", "<think>\n a \n</think>b"), own) == "a"
    assert thought_of(Message("user", "<think>a</think>b")) == ""
