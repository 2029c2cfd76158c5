"""From a plan to arrays, with every row and token accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.data.pipeline.loading import chat_datasets
from ftcore.data.tokenization.loss_reasons import Reason
from ftcore.errors import UsageError


def write(folder: Path, name: str, rows: list[Any]) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    text = "\n".join(json.dumps(row) for row in rows) if name.endswith("l") else json.dumps(rows)
    (folder / name).write_text(text)


def pair(question: str, answer: str) -> dict[str, str]:
    return {"instruction": question, "output": answer}


def texts(tokenizer: Any, data: Any) -> list[str]:
    return [tokenizer.decode(data[i]["input_ids"]) for i in range(len(data))]


def error(plan: Any, tokenizer: Any, folder: Path) -> list[str]:
    with pytest.raises(UsageError) as caught:
        chat_datasets(plan, tokenizer)
    return str(caught.value).replace(f"{folder}/", "").split("\n")


def test_rows_become_tokens(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.json", [pair("q", "one"), pair("q", "two")])
    write(
        tmp_path, "b.jsonl", [{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]}]
    )
    seen: list[tuple[str, int]] = []
    data = chat_datasets(make_plan("a.json,b.jsonl"), tokenizer, progress=lambda name, rows: seen.append((name, rows)))
    train = data.train
    assert train is not None
    assert data.eval is None
    assert len(train) == 3
    assert texts(tokenizer, train) == [
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        for question, answer in (("q", "one"), ("q", "two"), ("u", "v"))
    ]
    row = train[2]
    assert row["index"] == 2
    assert row["input_ids"].dtype == np.int32
    assert row["weights"].dtype == np.float32
    assert tokenizer.decode(row["input_ids"][row["weights"] > 0]) == "v<|im_end|>"
    assert train.reasons.dtype == np.uint8
    assert (train.reasons == Reason.END_OF_TURN).sum() == 3
    places = [str(place).replace(f"{tmp_path}/", "") for place in train.places]
    assert places == [
        "a.json:1",
        "a.json row 2",
        "b.jsonl:1",
    ]
    assert train.lengths.tolist() == [len(train[i]["input_ids"]) for i in range(3)]
    assert seen == [("a.json", 2), ("b.jsonl", 1)]
    with pytest.raises(IndexError):
        train[3]


def test_accounting(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    long = "word " * 50
    rows = [pair("q", "one"), pair("q", long), pair(long, "one"), pair("", "one"), pair(long, "two"), {"x": 1}]
    write(tmp_path, "a.jsonl", rows)
    counts = chat_datasets(make_plan("a.jsonl", cutoff_len=60, on_bad_row="skip"), tokenizer).accounting
    found = counts.as_dict()["train"]["a.jsonl"]
    shown = json.loads(json.dumps(found).replace(f"{tmp_path}/", ""))
    names = ("tokens", "used_tokens", "cut_tokens", "trained_tokens", "trained_share")
    tokens = {name: shown.pop(name) for name in names}
    assert shown == {
        "rows": 6,
        "kept": 2,
        "truncated": 1,
        "dropped": 2,
        "dropped_rows": [
            'a.jsonl:4: instruction and input are both missing or empty: ""; write the question in instruction',
            "a.jsonl:6: the row has no instruction and no input: it has x; write the question in instruction",
        ],
        "untrainable": {"its prompt is longer than cutoff_len": 2},
        "untrainable_rows": {"its prompt is longer than cutoff_len": ["a.jsonl:3", "a.jsonl:5"]},
        "without_thought": 0,
        "without_thought_rows": [],
    }
    lengths = [len(tokenizer(f"{row['instruction']}{row['output']}")["input_ids"]) for row in rows[:3]]
    frame = len(tokenizer("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n")["input_ids"])
    assert tokens["used_tokens"] == lengths[0] + frame + 60
    assert tokens["cut_tokens"] == lengths[1] + frame - 60
    lines = counts.summary().replace(f"{tmp_path}/", "").split("\n")
    used, trained = tokens["used_tokens"], tokens["trained_tokens"]
    assert lines[0] == f"a.jsonl: 2 of 6 rows, {used} tokens, {trained} trained ({trained / used:.1%})"
    assert tokens["trained_share"] == round(trained / used, 6)
    assert lines[1:] == [
        f"  truncated: 1 rows, {tokens['cut_tokens']} tokens beyond cutoff_len",
        "  dropped: 2 rows that cannot be read",
        *(f"    {line}" for line in shown["dropped_rows"]),
        "  untrainable: 2 rows, its prompt is longer than cutoff_len",
        "    a.jsonl:3",
        "    a.jsonl:5",
    ]


parts = st.sampled_from(["", "a", "好", "long " * 30, None, 3])
corpora = st.lists(
    st.fixed_dictionaries({"instruction": parts, "output": parts}) | st.just([1]), min_size=1, max_size=12
)


@pytest.mark.slow
@given(rows=corpora, cutoff=st.integers(10, 80), limit=st.none() | st.integers(1, 6))
def test_every_row_and_token_is_accounted_for(
    tmp_path: Path, tokenizer: Any, make_plan: Any, rows: list[Any], cutoff: int, limit: int | None
) -> None:
    write(tmp_path, "a.jsonl", [pair("q", "a"), *rows])
    plan = make_plan(
        "a.jsonl", cutoff_len=cutoff + 20, max_samples=limit, on_bad_row="skip", preprocessing_batch_size=3
    )
    data = chat_datasets(plan, tokenizer)
    (counts,) = data.accounting.train
    assert counts.rows == min(len(rows) + 1, limit or 99)
    assert counts.rows == counts.kept + len(counts.bad) + counts.left_out
    assert counts.kept == len(data.train)
    assert counts.used == len(data.train.ids)
    assert counts.tokens == counts.used + counts.cut + counts.left
    assert counts.trained == int((data.train.weights > 0).sum())
    assert all(row["weights"].any() for row in (data.train[i] for i in range(len(data.train))))


def test_bad_rows_of_all_datasets_at_once(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.jsonl", [pair("q", "a"), pair("q", "")])
    turns = [{"role": "user", "content": "u"}]
    write(tmp_path, "b.json", [{"messages": turns}, {"messages": turns * 2}])
    write(tmp_path, "c.json", [])
    (tmp_path / "d.json").write_text('[{"instruction": "q"')
    write(tmp_path, "e.json", [{"x": "x"}])
    write(tmp_path, "f.json", [{"text": "x"}])
    assert error(make_plan("a.jsonl,b.json,c.json,d.json,e.json,f.json"), tokenizer, tmp_path) == [
        "c.json: dataset 'c.json' has no rows; add rows to it, or remove it from the run",
        "d.json:1: the file ends inside row 1; is the file truncated? download or write it again",
        "e.json: dataset 'e.json': no format fits the columns x; formats: "
        "instruction (instruction, input, output; with optional system and history); "
        "messages (messages: a list of {role, content} (OpenAI); with optional tools); "
        "sharegpt (conversations: a list of {from, value}; human, gpt, observation, function_call, system); "
        "completion (prompt, completion; or chosen, rejected; each a text or a list of {role, content} (TRL)); "
        "text (text: one document a row, for pretraining); "
        "map other column names with columns in dataset_info.json",
        "f.json: dataset 'f.json' (columns text) holds texts; "
        "stage 'train' needs conversations that end with an answer; choose another dataset or a stage that reads it",
        'a.jsonl:2: output is empty: there is nothing to train on: ""; write the answer in output, or remove the row',
        "b.json:1: the conversation ends with 'user'; add the answer, or remove the last turn",
        "b.json row 2: messages[1].role: role 'user' follows 'user'; allowed here: assistant",
        "3 bad rows; correct the rows, or set on_bad_row: skip to leave them out",
    ]


def test_many_bad_rows_are_counted(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.jsonl", [pair("q", "a"), *[pair("q", "")] * 30])
    found = error(make_plan("a.jsonl"), tokenizer, tmp_path)
    assert len(found) == 21
    assert found[-1].startswith("30 bad rows; the first 20 are shown; ")


def test_nothing_to_train_on(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.jsonl", [pair("q " * 50, "a"), pair("q", "")])
    assert error(make_plan("a.jsonl", cutoff_len=20, on_bad_row="skip"), tokenizer, tmp_path) == [
        "a.jsonl:1: dataset 'a.jsonl' has nothing to train on; "
        "1 row: its prompt is longer than cutoff_len; 1 row cannot be read"
    ]


def test_val_size_that_leaves_nothing(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.jsonl", [pair("q", "a")])
    assert error(make_plan("a.jsonl", val_size=0.5), tokenizer, tmp_path) == [
        "val_size 0.5 takes 1 rows of 1: no rows are left to train on; write a smaller val_size"
    ]


@pytest.mark.parametrize(("val_size", "count"), [(0.25, 5), (0.01, 1), (7, 7)])
def test_val_size(tmp_path: Path, tokenizer: Any, make_plan: Any, val_size: float, count: int) -> None:
    write(tmp_path, "a.jsonl", [pair("q", str(i)) for i in range(20)])
    first = chat_datasets(make_plan("a.jsonl", val_size=val_size), tokenizer)
    assert (len(first.train), len(first.eval), first.accounting.split_off) == (20 - count, count, count)
    lines = [place.line for place in first.train.places], [place.line for place in first.eval.places]
    assert sorted(lines[0] + lines[1]) == list(range(1, 21))
    assert lines[0] == sorted(lines[0])
    again = chat_datasets(make_plan("a.jsonl", val_size=val_size), tokenizer)
    assert again.train.fingerprint == first.train.fingerprint
    other = chat_datasets(make_plan("a.jsonl", val_size=val_size, seed=1), tokenizer)
    assert other.eval.fingerprint != first.eval.fingerprint


def test_fingerprint_is_of_what_is_trained(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.jsonl", [pair("q", "one two " * 9), pair("q", "b")])
    write(tmp_path, "copy.json", [pair("q", "one two " * 9), pair("q", "b")])
    write(tmp_path, "other.json", [pair("q", "one two " * 9), pair("q", "c")])
    prints = [
        chat_datasets(make_plan(name, **options), tokenizer).train.fingerprint
        for name, options in (
            ("a.jsonl", {}),
            ("copy.json", {}),
            ("other.json", {}),
            ("a.jsonl", {"train_on_prompt": True}),
            ("a.jsonl", {"cutoff_len": 25}),
        )
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_folder_splits(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "set/train.json", [pair("q", "t")])
    write(tmp_path, "set/validation.jsonl", [pair("q", "v"), pair("q", "w")])
    write(tmp_path, "set/test.json", [pair("q", "x")])
    for options, expected in (({}, None), ({"do_eval": True}, 2), ({"eval_strategy": "epoch"}, 2)):
        data = chat_datasets(make_plan("set", **options), tokenizer)
        assert len(data.train) == 1
        assert (len(data.eval) if data.eval else None) == expected
    data = chat_datasets(make_plan("", eval_dataset="set"), tokenizer)
    assert data.train is None
    assert len(data.eval) == 2


HAS = "it has messages, system, tools, images, videos, audios, chosen, rejected, kto_tag"


def test_described_columns_and_limits(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    rows = [{"question": "q", "answer": str(i)} for i in range(5)]
    write(tmp_path, "a.json", rows)
    described = {"file_name": "a.json", "columns": {"prompt": "question", "response": "answer"}}
    turns = {"columns": {"messages": "question"}, "formatting": "messages"}
    info = {
        "a": described,
        "few": described | {"num_samples": 2},
        "named": described | {"formatting": "alpaca"},
        "wrong": described | {"formatting": "messages"},
        "unknown": described | {"formatting": "alpacca"},
        "turns": described | turns,
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info, indent=1))
    sizes = {name: len(chat_datasets(make_plan(name), tokenizer).train) for name in ("a", "few", "named")}
    assert sizes == {"a": 5, "few": 2, "named": 5}
    assert len(chat_datasets(make_plan("a", max_samples=3), tokenizer).train) == 3
    assert error(make_plan("wrong,unknown"), tokenizer, tmp_path) == [
        f"dataset 'wrong': format 'messages' has no column 'prompt'; {HAS}",
        f"dataset 'wrong': format 'messages' has no column 'response'; {HAS}",
        "unknown dataset format 'alpacca'; did you mean alpaca?",
    ]
    assert error(make_plan("turns", max_samples=2), tokenizer, tmp_path)[:2] == [
        'a.json:1: question is a string, not a list: "q"; write a list: [...]',
        'a.json row 2: question is a string, not a list: "q"; write a list: [...]',
    ]
