"""Streams: from any cursor on the same rows come, in whichever pass; nothing is lost, nothing is doubled."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.data.pipeline import streaming
from ftcore.data.pipeline.loading import chat_datasets
from ftcore.data.pipeline.streaming import Cursor, Stream
from ftcore.errors import UsageError
from ftcore.models import hub_access
from ftcore.training.batching.collators import collate
from ftcore.training.batching.streaming_loader import StreamBatches
from ftcore.utils.hashing import sampled_sha256


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_AT_ONCE", 3)


def write(folder: Path, name: str, answers: list[Any]) -> None:
    rows = [{"instruction": "q", "output": answer} for answer in answers]
    (folder / name).write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def stream_of(tmp_path: Path, tokenizer: Any, make_plan: Any) -> Any:
    """``stream_of("a.jsonl", **options)``."""

    def make(dataset: str, **options: Any) -> Stream:
        return chat_datasets(make_plan(dataset, streaming=True, **options), tokenizer).train

    return make


def said(tokenizer: Any, item: Any) -> str:
    return tokenizer.decode(item["input_ids"][item["weights"] > 0]).replace("<|im_end|>", "")


def first(stream: Stream, count: int, cursor: Cursor = Cursor()) -> list[tuple[Any, Cursor]]:  # noqa: B008
    return list(islice(stream.items(cursor), count))


def test_passes_follow_each_other(tmp_path: Path, tokenizer: Any, stream_of: Any) -> None:
    write(tmp_path, "a.jsonl", [str(number) for number in range(20)])
    stream = stream_of("a.jsonl", buffer_size=8)
    found = [said(tokenizer, item) for item, _ in first(stream, 60)]
    passes = [found[start : start + 20] for start in (0, 20, 40)]
    for one in passes:
        assert sorted(one, key=int) == [str(number) for number in range(20)]
        windows = [sorted(map(int, one[start : start + 8])) for start in (0, 8, 16)]
        assert windows == [list(range(8)), list(range(8, 16)), list(range(16, 20))]
    assert len({tuple(one) for one in passes}) == 3
    assert [said(tokenizer, item) for item, _ in first(stream_of("a.jsonl", buffer_size=8), 60)] == found
    assert [said(tokenizer, item) for item, _ in first(stream_of("a.jsonl", buffer_size=8, seed=7), 60)] != found
    plain = stream_of("a.jsonl", buffer_size=8, disable_shuffling=True)
    assert [said(tokenizer, item) for item, _ in first(plain, 40)] == [str(number) for number in range(20)] * 2
    assert [cursor.epoch for _, cursor in first(plain, 41)] == [0] * 20 + [1] * 20 + [2]


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    bad=st.sets(st.integers(0, 6)),
    buffer=st.integers(1, 9),
    strategy=st.sampled_from(["concat", "interleave_under", "interleave_over", "interleave_once"]),
    chances=st.booleans(),
    packing=st.booleans(),
    shuffling=st.booleans(),
    at=st.integers(0, 25),
)
def test_from_any_cursor_on(
    tmp_path: Path,
    tokenizer: Any,
    stream_of: Any,
    sizes: list[int],
    bad: set[int],
    buffer: int,
    strategy: str,
    chances: bool,
    packing: bool,
    shuffling: bool,
    at: int,
) -> None:
    """Rows that cannot be read or trained on among them; in packs or not; one dataset or several."""
    for source, size in enumerate(sizes):
        odd = {1: "", 3: "long " * 99}
        write(
            tmp_path,
            f"{source}.jsonl",
            [odd.get(number % 4, "x") if number in bad and number else f"{source} {number}" for number in range(size)],
        )
    options: dict[str, Any] = {"mix_strategy": strategy, "buffer_size": buffer, "packing": packing, "cutoff_len": 60}
    options |= {"on_bad_row": "skip", "disable_shuffling": not shuffling}
    if chances and strategy != "concat":
        options["interleave_probs"] = [1 / len(sizes)] * len(sizes)
    names = ",".join(f"{source}.jsonl" for source in range(len(sizes)))
    whole = first(stream_of(names, **options), 40)
    cursor = whole[at - 1][1] if at else Cursor()
    again = first(stream_of(names, **options), 40 - at, cursor)
    for (one, where), (other, there) in zip(whole[at:], again, strict=True):
        assert where == there
        assert one["input_ids"].tolist() == other["input_ids"].tolist()
        assert one["weights"].tolist() == other["weights"].tolist()


def test_split_texts_go_on_where_they_stopped(tmp_path: Path, tokenizer: Any, stream_of: Any) -> None:
    texts = ["one " * 30, "two " * 3, "three " * 80, "four"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    options = {"samples": "Text", "template": None, "packs": True, "cutoff_len": 16, "buffer_size": 3}
    stream = stream_of("a.jsonl", **options)
    whole = first(stream, 60)
    assert max(len(item["input_ids"]) for item, _ in whole) == 16
    assert any(cursor.start for _, cursor in whole)
    for at, (_, cursor) in enumerate(whole[:40], 1):
        again = first(stream_of("a.jsonl", **options), 20, cursor)
        for (one, where), (other, there) in zip(whole[at : at + 20], again, strict=True):
            assert (where, one["input_ids"].tolist()) == (there, other["input_ids"].tolist())
            assert one["lengths"].tolist() == other["lengths"].tolist()
    # Every token but each text's first is predicted, once a pass, in order.
    ordered = first(stream_of("a.jsonl", **options, disable_shuffling=True), 40)
    batch = collate([item for item, _ in ordered])
    predicted = batch["labels"][0][batch["weights"][0] > 0].tolist()
    ids = [token for text in texts for token in tokenizer(text + "<|im_end|>")["input_ids"][1:]]
    assert len(predicted) > 2 * len(ids)
    assert predicted == [ids[number % len(ids)] for number in range(len(predicted))]


def test_counts_and_places(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.jsonl", ["a", "", "b", "long " * 99, "c"])
    data = chat_datasets(make_plan("a.jsonl", streaming=True, on_bad_row="skip", cutoff_len=20), tokenizer)
    assert data.accounting.summary() == "a.jsonl: streamed; rows are counted as they are read"
    assert data.eval is None
    rows = first(data.train, 11)
    (counts,) = data.accounting.train
    assert (counts.rows, counts.kept, len(counts.bad), counts.truncated) == (5, 4, 1, 1)
    assert data.accounting.as_dict()["train"]["a.jsonl"]["rows"] == 5
    assert data.accounting.read_so_far().startswith("a.jsonl: 4 of 5 rows, ")
    lines = [data.train.places[item["index"]].line for item, _ in rows[:8]]
    assert [sorted(one) for one in (lines[:4], lines[4:])] == [[1, 3, 4, 5]] * 2


def test_bad_rows_stop_it(tmp_path: Path, stream_of: Any) -> None:
    write(tmp_path, "a.jsonl", ["a", "b", "", "c"] + ["d"] * 16)
    with pytest.raises(UsageError, match=r"a\.jsonl:3: output is empty"):
        first(stream_of("a.jsonl"), 20)
    assert len(first(stream_of("a.jsonl", on_bad_row="skip", max_bad_rows=1), 30)) == 30
    assert len(first(stream_of("a.jsonl", on_bad_row="skip", max_bad_rows=0.05), 30)) == 30
    for most in (0, 0.04):
        with pytest.raises(UsageError, match="max_bad_rows is "):
            first(stream_of("a.jsonl", on_bad_row="skip", max_bad_rows=most), 30)


def test_nothing_to_train_on(tmp_path: Path, stream_of: Any) -> None:
    write(tmp_path, "a.jsonl", [""] * 5)
    with pytest.raises(UsageError, match=r"dataset 'a\.jsonl' has nothing to train on"):
        first(stream_of("a.jsonl", on_bad_row="skip"), 1)


def test_the_first_rows_are_held_out(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.jsonl", ["0", "", "1", "2", "3", "4"])
    options = {"streaming": True, "on_bad_row": "skip", "val_size": 2, "buffer_size": 2}
    data = chat_datasets(make_plan("a.jsonl", **options), tokenizer)
    assert [said(tokenizer, data.eval[number]) for number in range(2)] == ["0", "1"]
    assert sorted(said(tokenizer, item) for item, _ in first(data.train, 6)) == ["2", "2", "3", "3", "4", "4"]
    assert data.accounting.summary().split("\n")[1:] == ["evaluation: 2 rows split off by val_size"]
    with pytest.raises(UsageError, match="val_size 5 takes all rows: no rows are left to train on"):
        chat_datasets(make_plan("a.jsonl", **options | {"val_size": 5}), tokenizer)
    write(tmp_path, "b.jsonl", ["5"])
    other = chat_datasets(make_plan("a.jsonl", eval_dataset="b.jsonl", **options | {"val_size": 0}), tokenizer)
    assert len(other.eval) == 1


def test_what_a_resume_must_find_unchanged(tmp_path: Path, stream_of: Any) -> None:
    write(tmp_path, "a.jsonl", ["a", "b"])
    changes: list[dict[str, Any]] = [{}, {"buffer_size": 3}, {"cutoff_len": 99}, {"disable_shuffling": True}]
    changes += [{"packing": True}, {"val_size": 1}, {"template": "llama3"}]
    prints = [stream_of("a.jsonl", **change).fingerprint for change in changes]
    assert len(set(prints)) == len(prints)
    assert stream_of("a.jsonl").fingerprint == prints[0]
    write(tmp_path, "a.jsonl", ["a", "c"])
    assert stream_of("a.jsonl").fingerprint not in prints


def test_samples_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    content = bytearray(3 << 20)
    path.write_bytes(content)
    prints = {sampled_sha256(path)}
    for position in (0, 205_400, len(content) - 1):
        changed = content.copy()
        changed[position] = 1
        path.write_bytes(changed)
        prints.add(sampled_sha256(path))
    path.write_bytes(content + b"\0")
    prints.add(sampled_sha256(path))
    assert len(prints) == 5


# ---- batches ----


def test_batches(tmp_path: Path, tokenizer: Any, stream_of: Any) -> None:
    """Shares of processes are the batches of one; a resume needs no batch before it."""
    write(tmp_path, "a.jsonl", [str(number) for number in range(7)])

    def batches(**options: Any) -> StreamBatches:
        return StreamBatches(stream_of("a.jsonl", buffer_size=5), 12, **options)

    def texts(batch: Any) -> list[str]:
        return [said(tokenizer, row) for row in batch]

    one = batches(size=4)
    whole = [texts(one[number]) for number in range(12)]
    assert all(len(batch) == 4 for batch in whole)
    two = [batches(size=2, process=process, processes=2) for process in (0, 1)]
    assert [texts(two[0][number]) + texts(two[1][number]) for number in range(12)] == whole
    stopped = batches(size=4)
    for number in range(5):
        stopped[number]
    resumed = batches(size=4)
    resumed.resume(5, stopped.cursor)
    assert [texts(resumed[number]) for number in range(5, 12)] == whole[5:]
    assert [texts(resumed[number]) for number in (7, 8)] == whole[7:9]  # once more, from the place that it knows
    assert texts(batches(size=4)[9]) == whole[9]
    with pytest.raises(IndexError):
        one[12]


def test_rows_on_the_hub_are_fetched_as_they_are_read(
    tmp_path: Path, tokenizer: Any, make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load(hub_id: str, **options: Any) -> Any:
        asked.append((hub_id, options["streaming"]))
        return ({"instruction": "q", "output": str(number)} for number in range(3))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub_access.HubName, "problem", lambda self, where="": None)
    data = chat_datasets(make_plan("some/rows", streaming=True, disable_shuffling=True), tokenizer)
    assert [said(tokenizer, item) for item, _ in first(data.train, 5)] == ["0", "1", "2", "0", "1"]
    assert asked == [("some/rows", True)] * 2
    assert str(data.train.places[4]) == "some/rows row 2"
    assert all(before < after for (_, before), (_, after) in pairwise(first(data.train, 5)))


def test_rows_that_are_asked_for_again_are_counted_once(tmp_path: Path, stream_of: Any) -> None:
    write(tmp_path, "a.jsonl", ["x", "", "y", "", "z", "", "w"])
    stream = stream_of("a.jsonl", on_bad_row="skip", max_bad_rows=3)
    batches = StreamBatches(stream, 8, 1)
    for number in (0, 1, 0, 2, 0, 3, 4):
        batches[number]
    (counts,) = stream.counts
    assert (counts.rows, counts.kept, len(counts.bad)) == (7, 4, 3)
    assert len({problem.where for problem in counts.bad}) == 3
