"""What happens to rows that cannot be read: fail, skip, quarantine, and how many are too many."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ftcore.data.pipeline import worker_pool
from ftcore.data.pipeline.loading import chat_datasets
from ftcore.data.pipeline.quarantine import write_quarantine
from ftcore.data.pipeline.streaming import Cursor
from ftcore.errors import UsageError

GOOD = {"instruction": "q", "output": "r"}
LINES = [json.dumps(GOOD), '{"instruction": "q", "output": ""}', json.dumps(GOOD), '{"instruction', "[1]"]
HALF = '{"instruction": "q", "output": "\\ud83d"}'


def read(plan: Any, tokenizer: Any) -> Any:
    return chat_datasets(plan, tokenizer).accounting


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_quarantine(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join([*LINES, HALF]))
    (tmp_path / "b.json").write_text(json.dumps([GOOD, {"instruction": "", "output": "x"}]))
    plan = make_plan("a.jsonl", eval_dataset="b.json", on_bad_row="quarantine")
    accounting = read(plan, tokenizer)
    out = tmp_path / "out"
    out.mkdir()
    assert write_quarantine(plan, accounting, out) == f"5 bad rows written to {out}/quarantine.jsonl"
    rows = [row | {"source": row["source"].replace(f"{tmp_path}/", "")} for row in written(out)]
    assert rows == [
        {
            "dataset": "a.jsonl",
            "source": "a.jsonl:2",
            "reason": 'output is empty: there is nothing to train on: ""',
            "fix": "write the answer in output, or remove the row",
            "row": {"instruction": "q", "output": ""},
        },
        {
            "dataset": "a.jsonl",
            "source": "a.jsonl:4",
            "reason": 'not JSON: the line is incomplete at column 2: "{\\"instruction"',
            "fix": "is the file truncated? download or write it again",
            "row": '{"instruction',
        },
        {
            "dataset": "a.jsonl",
            "source": "a.jsonl:5",
            "reason": "the row is a list: [1]",
            "fix": "write the row as an object: {column: value}",
            "row": [1],
        },
        {
            "dataset": "a.jsonl",
            "source": "a.jsonl:6",
            "reason": "after 'im_start|>assistant\\n': the text contains an unpaired surrogate: \\ud83d",
            "fix": "repair the text, or remove the row",
            "row": {"instruction": "q", "output": "\ud83d"},
        },
        {
            "dataset": "b.json",
            "source": "b.json row 2",
            "reason": 'instruction and input are both missing or empty: ""',
            "fix": "write the question in instruction",
            "row": {"instruction": "", "output": "x"},
        },
    ]


def test_a_stale_quarantine_is_removed(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    (tmp_path / "a.jsonl").write_text(LINES[0])
    (tmp_path / "quarantine.jsonl").write_text("old")
    plan = make_plan("a.jsonl", on_bad_row="quarantine")
    assert write_quarantine(plan, read(plan, tokenizer), tmp_path) == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl"]
    plan = make_plan("a.jsonl", on_bad_row="skip")
    (tmp_path / "quarantine.jsonl").write_text("kept")
    assert write_quarantine(plan, read(plan, tokenizer), tmp_path) == ""
    assert (tmp_path / "quarantine.jsonl").read_text() == "kept"


def test_skip_counts_and_names(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(LINES))
    accounting = read(make_plan("a.jsonl", on_bad_row="skip"), tokenizer)
    lines = accounting.summary().replace(f"{tmp_path}/", "").split("\n")
    assert lines[0].startswith("a.jsonl: 2 of 5 rows, ")
    assert lines[1] == "  dropped: 3 rows that cannot be read"
    assert [line.split(": ")[0] for line in lines[2:]] == ["    a.jsonl:2", "    a.jsonl:4", "    a.jsonl:5"]


BAD = ["{", '{"instruction": "q", "output": ""}', "[1]", "7", '{"output": "r"}', '{"instruction": "q", "output": 5}']


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", [{}, {"tokenized_path": "kept"}, {"streaming": True}, {"preprocessing_num_workers": 2}]
)
@pytest.mark.parametrize("policy", ["fail", "skip", "quarantine"])
@pytest.mark.parametrize("good", [0, 2])
def test_a_second_run_says_what_the_first_said(
    tmp_path: Path,
    tokenizer: Any,
    make_plan: Any,
    monkeypatch: pytest.MonkeyPatch,
    where: dict[str, Any],
    policy: str,
    good: int,
) -> None:
    """A table of no rows is kept like another, and read with its counts."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker_pool, "ALONE", 2)
    (tmp_path / "a.jsonl").write_text("\n".join([*BAD, *[json.dumps(GOOD)] * good]))

    def said() -> str:
        plan = make_plan("a.jsonl", on_bad_row=policy, preprocessing_batch_size=2, **where)
        try:
            data = chat_datasets(plan, tokenizer)
            if data.train and plan.data.streaming:
                assert len(list(islice(data.train.items(Cursor()), 3))) == 3
            found = [json.dumps(data.accounting.as_dict())]
        except UsageError as error:
            found = [*map(str, error.problems)]
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        if len(found) == 1 and policy == "quarantine" and good:
            found += [write_quarantine(plan, data.accounting, out), (out / "quarantine.jsonl").read_text()]
        return "\n".join(found)

    first = said()
    assert [said(), said()] == [first, first]
    if policy == "fail":
        assert "\n6 bad rows; " in first
        assert first.count("a.jsonl:") == 6
    elif good:
        assert '"rows": 8, "kept": 2, "truncated": 0, "dropped": 6' in first
    else:
        assert "has nothing to train on" in first


@pytest.mark.parametrize(
    ("most", "hint"),
    [
        (3, ""),
        (0.6, ""),
        (2, "max_bad_rows is 2, and there are 3 of 5 in 'a.jsonl'"),
        (0.5, "max_bad_rows is 0.5, and there are 3 of 5 in 'a.jsonl'"),
        (0, "max_bad_rows is 0, and there are 3 of 5 in 'a.jsonl'"),
    ],
)
@pytest.mark.parametrize("policy", ["skip", "quarantine"])
def test_max_bad_rows(tmp_path: Path, tokenizer: Any, make_plan: Any, most: float, hint: str, policy: str) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(LINES))
    (tmp_path / "b.jsonl").write_text(LINES[0])
    plan = make_plan("a.jsonl,b.jsonl", on_bad_row=policy, max_bad_rows=most)
    if not hint:
        assert [counts.kept for counts in read(plan, tokenizer).train] == [2, 1]
        return
    with pytest.raises(UsageError) as caught:
        read(plan, tokenizer)
    assert len(caught.value.problems) == 4
    assert str(caught.value.problems[-1]) == f"3 bad rows; {hint}"


def test_max_bad_rows_and_fail(write_config: Callable[..., Path]) -> None:
    from ftcore.config.planner import make_plan

    file = write_config(max_bad_rows=3)
    with pytest.raises(UsageError) as caught:
        make_plan(file)
    (problem,) = caught.value.problems
    assert str(problem).removeprefix(str(file)).partition(": ")[2] == (
        "max_bad_rows is set, and on_bad_row: fail accepts no bad row; write on_bad_row: skip or quarantine"
    )


@pytest.mark.slow
def test_a_run_with_quarantine(tiny_model_dir: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from ftcore.cli import group

    (tmp_path / "a.jsonl").write_text("\n".join(LINES))
    config = {
        "model_name_or_path": str(tiny_model_dir),
        "dataset": str(tmp_path / "a.jsonl"),
        "template": "chatml",
        "finetuning_type": "full",
        "do_train": True,
        "max_steps": 1,
        "output_dir": str(tmp_path / "out"),
        "on_bad_row": "quarantine",
    }
    (tmp_path / "run.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in config.items()))
    result = CliRunner().invoke(group, ["run", str(tmp_path / "run.yaml")], catch_exceptions=False)
    assert result.exit_code == 0
    assert f"3 bad rows written to {tmp_path}/out/quarantine.jsonl\n" in result.output
    assert [row["row"] for row in written(tmp_path / "out")][1:] == ['{"instruction', [1]]
    counts = json.loads((tmp_path / "out" / "ft_run.json").read_text())["counts"]["train"]
    (found,) = counts.values()
    assert (found["rows"], found["kept"], found["dropped"]) == (5, 2, 3)
