"""R12: rows in are rows trained, skipped and untrainable, each with its reason; tokens in are used, cut and left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from ftcore.data.pipeline.loading import chat_datasets, feedback_datasets, pair_datasets
from ftcore.data.pipeline.quarantine import write_quarantine
from ftcore.data.row_stats import RowStats
from ftcore.errors import UsageError

LOADERS = {"Preference": pair_datasets, "Feedback": feedback_datasets}
LONG = "word " * 30
texts = st.sampled_from(["", " ", "a", "好 ok", LONG, "<|im_end|>", "<think>b</think>c", "\ud83d"])
values = texts | st.sampled_from([None, 3, [], ["a"], {}, True])
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]), "content": values})
    | values,
    max_size=4,
)
answer = st.fixed_dictionaries({"role": st.sampled_from(["assistant", "user"]), "content": values})
marks = st.sampled_from([True, False, None, 1, "true", "no"])
ROWS = {
    "Chat": st.fixed_dictionaries({}, optional={"instruction": values, "output": values, "input": values}),
    "Prompt": st.fixed_dictionaries({}, optional={"instruction": values, "output": values}),
    "Preference": st.fixed_dictionaries(
        {}, optional={"instruction": texts, "chosen": values | answer, "rejected": texts | answer, "output": values}
    ),
    "Feedback": st.fixed_dictionaries({}, optional={"instruction": texts, "output": texts, "kto_tag": marks}),
    "Text": st.fixed_dictionaries({}, optional={"text": values}),
}
GOOD = {
    "Chat": {"instruction": "q", "output": "r"},
    "Prompt": {"instruction": "q"},
    "Preference": {"instruction": "q", "chosen": "c", "rejected": "d"},
    "Feedback": {"instruction": "q", "output": "r", "kto_tag": True},
    "Text": {"text": "t"},
}
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
broken = st.sampled_from(["[1]", "null", '{"instruction": ', "not JSON", "{}"])


@st.composite
def corpora(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A kind and the lines of a file; one row at least is as it should be, so that the run goes on."""
    kind = draw(st.sampled_from(list(ROWS)))
    rows = draw(st.lists(ROWS[kind].map(json.dumps) | broken, max_size=8))
    good = GOOD[kind]
    if kind == "Chat" and draw(st.booleans()):
        rows = draw(st.lists(turns.map(lambda found: json.dumps({"messages": found})) | broken, max_size=8))
        good = {"messages": TURNS}
    rows.insert(draw(st.integers(0, len(rows))), json.dumps(good))
    if rows[0].startswith("["):  # then the whole file would be one array
        rows.reverse()
    return kind, rows if not rows[0].startswith("[") else [json.dumps(good), *rows]


def check(accounting: RowStats, data: Any, lines: list[str], kind: str) -> None:
    (counts,) = accounting.train
    arrays = data.parts if kind in LOADERS else data
    assert counts.rows == len(lines) == counts.kept + len(counts.bad) + counts.left_out
    assert counts.kept == len(data) > 0
    assert counts.tokens == counts.used + counts.cut + counts.left
    assert counts.used == len(arrays.ids) == int(data.lengths.sum())
    # The first token of all is nobody's prediction; in pairs and feedback it is the prompt's, whose weight is 0.
    first = 0 if kind in LOADERS else sum(bool(data[i]["weights"][0]) for i in range(len(data)))
    assert counts.trained == int((arrays.weights > 0).sum()) - first
    assert all(problem.where and problem.message and problem.hint for problem in counts.bad)
    numbers = [place.row for places in counts.untrainable.values() for place in places]
    numbers += [place.row for place in data.places]
    numbers += [int(problem.where.rpartition(":")[2]) for problem in counts.bad]  # no blank lines: a line is a row
    assert sorted(numbers) == list(range(1, len(lines) + 1))
    event(f"{kind}: bad {bool(counts.bad)}, untrainable {bool(counts.left_out)}, cut {bool(counts.cut)}")


def printed(accounting: RowStats) -> None:
    """What the terminal and the manifest say adds up as well."""
    (counts,), (shown,) = accounting.train, accounting.as_dict()["train"].values()
    assert shown["rows"] == shown["kept"] + shown["dropped"] + sum(shown["untrainable"].values())
    assert shown["tokens"] >= shown["used_tokens"] + shown["cut_tokens"]
    lines = counts.lines()
    assert f"{counts.kept:,} of {counts.rows:,} rows, {counts.used:,} tokens, {counts.trained:,} trained" in lines[0]
    assert bool(counts.bad) == any("rows that cannot be read" in line for line in lines)
    assert all(any(reason in line for line in lines) for reason in counts.untrainable)


@pytest.mark.slow
@given(corpus=corpora(), cutoff=st.integers(24, 80), cut_alike=st.booleans())
def test_identity(
    tmp_path: Path, tokenizer: Any, make_plan: Any, monkeypatch: Any, corpus: Any, cutoff: int, cut_alike: bool
) -> None:
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    kind, lines = corpus
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    load = LOADERS.get(kind, chat_datasets)
    options = {"samples": kind, "cutoff_len": cutoff, "preprocessing_batch_size": 3 if cut_alike else 1000}
    data = load(make_plan("a.jsonl", on_bad_row="skip", **options), tokenizer)
    check(data.accounting, data.train, lines, kind)
    printed(data.accounting)
    (counts,) = data.accounting.train
    if not counts.bad:
        return
    plan = make_plan("a.jsonl", on_bad_row="quarantine", **options)
    again = load(plan, tokenizer)
    write_quarantine(plan, again.accounting, tmp_path)
    written = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [row["source"] for row in written] == [problem.where for problem in counts.bad]
    with pytest.raises(UsageError) as caught:
        load(make_plan("a.jsonl", **options), tokenizer)
    assert len(caught.value.problems) == min(len(counts.bad), 20) + 1


@pytest.mark.slow
@given(corpus=corpora())
def test_tokens_are_those_of_the_uncut_rows(
    tmp_path: Path, tokenizer: Any, make_plan: Any, monkeypatch: Any, corpus: Any
) -> None:
    """What is used, cut and left of short rows is what is used of the same rows when nothing is cut."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    kind, lines = corpus
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    load = LOADERS.get(kind, chat_datasets)
    short, whole = (
        load(make_plan("a.jsonl", on_bad_row="skip", samples=kind, cutoff_len=cutoff), tokenizer).accounting.train[0]
        for cutoff in (24, 100_000)
    )
    assert whole.cut == 0
    assert short.tokens == whole.tokens == whole.used + whole.left
