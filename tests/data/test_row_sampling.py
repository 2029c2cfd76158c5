"""``num_samples``: rows at random where there are more, all of them several times where there are fewer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.api.samples import Place
from ftcore.cli.preview import show
from ftcore.data.pipeline.loading import chat_datasets, feedback_datasets, pair_datasets
from ftcore.data.pipeline.quarantine import write_quarantine
from ftcore.data.pipeline.row_sampling import counted, drawn_rows, sampling_of
from ftcore.data.preprocessing import template_check
from ftcore.data.row_stats import RowStats
from ftcore.errors import UsageError


@given(count=st.integers(1, 50), asked=st.integers(1, 200), seed=st.integers(0, 99))
def test_a_draw_takes_no_row_twice_oftener_than_another(count: int, asked: int, seed: int) -> None:
    drawn = drawn_rows(count, asked, seed)
    times = np.bincount(drawn, minlength=count)
    assert len(drawn) == asked
    assert times.max() - times.min() <= 1
    assert (drawn == drawn_rows(count, asked, seed)).all()
    assert len(set(drawn[:count].tolist())) == min(count, asked)  # all of them before any comes again


def test_repeats_side_by_side_are_counted() -> None:
    one, two = Place("a", 1), Place("a", 2)
    assert list(counted([(one, "x"), (one, "x"), (two, "y"), (one, "x")])) == [
        (one, "x", 2),
        (two, "y", 1),
        (one, "x", 1),
    ]


def described(folder: Path, count: int, num_samples: int | None, name: str = "a", **more: Any) -> None:
    rows = [{"instruction": f"{name} question {n}", "output": f"answer {n}"} for n in range(count)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = folder / "dataset_info.json"
    entries = json.loads(info.read_text()) if info.exists() else {}
    entries[name] = {"file_name": f"{name}.jsonl", "num_samples": num_samples, **more}
    info.write_text(json.dumps(entries))


def lines(dataset: Any) -> list[int]:
    return [place.line for place in dataset.places]


@pytest.mark.parametrize(("asked", "most"), [(30, 1), (100, 1), (300, 3), (250, 3)])
def test_what_is_trained_is_what_is_counted(
    asked: int, most: int, tmp_path: Path, tokenizer: Any, make_plan: Any
) -> None:
    described(tmp_path, 100, asked)
    plain = chat_datasets(make_plan("a.jsonl"), tokenizer).train
    tokens = dict(zip(lines(plain), plain.lengths.tolist(), strict=True))
    data = chat_datasets(make_plan("a", seed=5), tokenizer)
    times = Counter(lines(data.train))
    assert len(data.train) == asked
    assert max(times.values()) == most
    assert len(times) == min(asked, 100)
    assert lines(data.train) != sorted(lines(data.train))
    (counts,) = data.accounting.train
    assert (counts.rows, counts.kept, counts.of) == (asked, asked, 100)
    assert counts.used == sum(data.train.lengths) == sum(tokens[line] for line in lines(data.train))
    assert counts.trained == int((data.train.weights > 0).sum())
    assert f"a: {asked} of {asked} rows" in data.accounting.summary()
    assert f"\n  {asked} rows drawn of 100" in data.accounting.summary()
    assert data.accounting.as_dict()["train"]["a"]["drawn_of"] == 100
    again = chat_datasets(make_plan("a", seed=5), tokenizer)  # from the cache
    assert lines(again.train) == lines(data.train)
    assert again.accounting == data.accounting
    assert again.train.fingerprint == data.train.fingerprint
    other = chat_datasets(make_plan("a", seed=6), tokenizer).train
    assert lines(other) != lines(data.train)
    assert other.fingerprint != data.train.fingerprint


def test_the_number_decides_what_is_kept(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    sizes = []
    for asked in (20, 7, None, 21):
        described(tmp_path, 10, asked)
        sizes.append(len(chat_datasets(make_plan("a"), tokenizer).train))
    assert sizes == [20, 7, 10, 21]


def test_max_samples_takes_the_first_of_the_draw(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    described(tmp_path, 100, 300)
    data = chat_datasets(make_plan("a", max_samples=20), tokenizer)
    assert sorted(lines(data.train)) == sorted((drawn_rows(100, 300, 42)[:20] + 1).tolist())
    assert "\n  20 rows drawn of 100" in data.accounting.summary()
    assert lines(chat_datasets(make_plan("a.jsonl", max_samples=20), tokenizer).train) == list(range(1, 21))


@pytest.mark.parametrize(("val_size", "held_out"), [(0.1, 10), (7, 7)])
def test_what_is_evaluated_on_is_not_trained_on(
    val_size: float, held_out: int, tmp_path: Path, tokenizer: Any, make_plan: Any
) -> None:
    described(tmp_path, 100, 300)
    data = chat_datasets(make_plan("a", val_size=val_size), tokenizer)
    assert len(data.eval) == len(set(lines(data.eval))) == held_out == data.accounting.split_off
    assert len(data.train) == 3 * (100 - held_out)
    assert not set(lines(data.train)) & set(lines(data.eval))
    assert data.accounting.notes == (f"val_size: {2 * held_out} repeats of validation rows are left out of training",)


@pytest.mark.parametrize("strategy", ["concat", "interleave_over"])
def test_datasets_are_weighted(strategy: str, tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    described(tmp_path, 10, 40)
    described(tmp_path, 50, 20, name="b")
    data = chat_datasets(make_plan("a,b", mix_strategy=strategy), tokenizer)
    files = Counter(Path(place.file).name for place in data.train.places)
    expected = {"concat": (40, 20), "interleave_over": (40, 40)}[strategy]
    assert (files["a.jsonl"], files["b.jsonl"]) == expected


def test_packs_hold_every_repeat(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    described(tmp_path, 10, 40)
    plain = chat_datasets(make_plan("a.jsonl"), tokenizer).train
    packed = chat_datasets(make_plan("a", packing=True, cutoff_len=64), tokenizer)
    assert int(packed.train.lengths.sum()) == 4 * int(plain.lengths.sum())


def test_preferences_and_marks(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(5)]
    marked = [{"prompt": f"q{n}", "completion": f"{n}", "label": n % 2 == 0} for n in range(5)]
    info = {}
    for name, rows in (("pairs", pairs), ("marked", marked)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        info[name] = {"file_name": f"{name}.json", "num_samples": 12}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    for name, load, kind in (("pairs", pair_datasets, "Preference"), ("marked", feedback_datasets, "Feedback")):
        data = load(make_plan(name, samples=kind), tokenizer)
        assert len(data.train) == data.accounting.train[0].kept == 12
        assert sorted(Counter(place.row for place in data.train.places).values()) == [2, 2, 2, 3, 3]
        assert data.train[11]["index"] == 11


def test_evaluation_data_too(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    described(tmp_path, 4, 10)
    data = chat_datasets(make_plan("", eval_dataset="a"), tokenizer)
    assert len(data.eval) == data.accounting.eval[0].kept == 10


def test_a_bad_row_is_named_once_and_counted_as_drawn(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    described(tmp_path, 4, 12)
    file = tmp_path / "a.jsonl"
    file.write_text(file.read_text() + '{"instruction": "q", "output": 5}\nnot json\n')
    with pytest.raises(UsageError) as raised:
        chat_datasets(make_plan("a"), tokenizer)
    assert [str(problem).replace(str(tmp_path), "DIR")[:13] for problem in raised.value.problems] == [
        "DIR/a.jsonl:5",
        "DIR/a.jsonl:6",
        "2 bad rows; c",
    ]
    plan = make_plan("a", on_bad_row="quarantine")
    data = chat_datasets(plan, tokenizer)
    (counts,) = data.accounting.train
    assert (counts.rows, counts.kept, counts.as_dict()["dropped"]) == (12, 8, 4)
    assert len(counts.as_dict()["dropped_rows"]) == 2
    assert write_quarantine(plan, data.accounting, tmp_path).startswith("2 bad rows written")


def test_preview_agrees_with_the_run(
    tmp_path: Path, tokenizer: Any, make_plan: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    described(tmp_path, 5, 12)
    plan = make_plan("a")
    run = chat_datasets(plan, tokenizer).accounting
    plan.plugins = type("P", (), {"of": plan.plugins.of, "find": plan.plugins.find, "hook": plan})()
    plan.ft_load_tokenizer = lambda plan: tokenizer
    monkeypatch.setattr(template_check, "check_template", lambda plan, tokenizer: None)
    show(plan, rows=0, stats=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == RowStats(run.train).as_dict()
    show(plan, rows=0, stats=False, as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 5
    assert sum(row["times"] for row in rows) == 12
    show(plan, rows=1, stats=False, as_json=False)
    out = capsys.readouterr().out
    assert "drawn 2 times" in out or "drawn 3 times" in out
    assert "rows drawn of 5" in out


def test_no_sampling_reads_nothing_twice(tmp_path: Path, make_plan: Any) -> None:
    described(tmp_path, 4, None)
    plan = make_plan("a")
    assert sampling_of(plan.datasets[0], plan) is None
