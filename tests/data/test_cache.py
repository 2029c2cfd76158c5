"""Tokens kept between runs: used when nothing that counts has changed, made anew when anything has (R19, R20)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftcore.api.option_groups import DataOptions
from ftcore.api.samples import Place
from ftcore.data import fingerprint
from ftcore.data.fingerprint import WITHOUT_EFFECT, key_parts
from ftcore.data.pipeline.dataset_job import DatasetJob
from ftcore.data.pipeline.loading import chat_datasets
from ftcore.data.preprocessing.documents import renderer_of
from ftcore.data.row_stats import RowCounts
from ftcore.data.storage import cache
from ftcore.data.storage.arrays import Table, TableWriter, TokenizedRow, read_table
from ftcore.errors import RunError, UsageError
from ftcore.testing import tiny_tokenizer
from ftcore.utils import file_digests
from ftcore.utils.file_digests import file_sha256


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    pairs = [{"instruction": f"question {number}", "output": f"answer {number}"} for number in range(20)]
    path.write_text("\n".join(map(json.dumps, pairs)))
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the datasets that were made and not found."""
    names: list[str] = []
    fill = DatasetJob._fill

    def noted(self: DatasetJob, writer: Any, counts: RowCounts) -> None:
        names.append(self.spec.name)
        fill(self, writer, counts)

    monkeypatch.setattr(DatasetJob, "_fill", noted)
    return names


def same(one: Any, other: Any) -> bool:
    arrays = ("ids", "weights", "reasons", "lengths")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays) and list(
        one.places
    ) == list(other.places)


def test_the_second_run_finds_what_the_first_made(rows: Path, tokenizer: Any, make_plan: Any, made: list[str]) -> None:
    first = chat_datasets(make_plan("a.jsonl"), tokenizer)
    seen: list[Any] = []
    again = chat_datasets(make_plan("a.jsonl"), tokenizer, progress=lambda *one: seen.append(one))
    assert made == ["a.jsonl"]
    assert seen == [("a.jsonl", 20)]
    assert same(first.train, again.train)
    assert again.train.fingerprint == first.train.fingerprint
    assert again.accounting == first.accounting


CHANGES: dict[str, Any] = {
    "cutoff_len": {"cutoff_len": 30},
    "train_on_prompt": {"train_on_prompt": True},
    "mask_history": {"mask_history": True},
    "template": {"template": "llama3"},
    "default_system": {"default_system": "be brief"},
    "enable_thinking": {"enable_thinking": False},
    "max_samples": {"max_samples": 19},
    "stage": {"samples": "Prompt"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_options_that_matter(change: str, rows: Path, tokenizer: Any, make_plan: Any, made: list[str]) -> None:
    chat_datasets(make_plan("a.jsonl"), tokenizer)
    chat_datasets(make_plan("a.jsonl", **CHANGES[change]), tokenizer)
    assert made == ["a.jsonl"] * 2
    chat_datasets(make_plan("a.jsonl"), tokenizer)
    assert made == ["a.jsonl"] * 2


def test_options_that_do_not(rows: Path, tokenizer: Any, make_plan: Any, made: list[str]) -> None:
    """Nor do another folder, another name of the file, and another run's options."""
    chat_datasets(make_plan("a.jsonl"), tokenizer)
    options: dict[str, Any] = {"val_size": 0.2, "seed": 7, "disable_shuffling": True, "on_bad_row": "skip"}
    options |= {"preprocessing_batch_size": 3, "preprocessing_num_workers": 2, "max_steps": 3}
    again = chat_datasets(make_plan("a.jsonl", **options), tokenizer)
    assert (len(again.train), len(again.eval)) == (16, 4)
    assert made == ["a.jsonl"]


def test_every_option_is_known_to_matter_or_not() -> None:
    """Whoever adds an option decides; what is not decided makes tokens anew, which is slow and right."""
    matter = {"cutoff_len", "train_on_prompt", "mask_history", "media_dir", "max_row_bytes"}
    assert set(DataOptions.model_fields) - WITHOUT_EFFECT == matter
    assert set(DataOptions.model_fields) >= WITHOUT_EFFECT


@pytest.mark.parametrize("keep_time", [False, True])
def test_one_byte_of_data(
    keep_time: bool, rows: Path, tokenizer: Any, make_plan: Any, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where size and time of change are put back."""
    monkeypatch.setattr(file_digests, "_RECENT_NS", 0)
    chat_datasets(make_plan("a.jsonl"), tokenizer)
    before = rows.stat()
    rows.write_bytes(rows.read_bytes().replace(b"answer 7", b"answer 8"))
    if keep_time:
        os.utime(rows, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (rows.stat().st_size, rows.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    data = chat_datasets(make_plan("a.jsonl"), tokenizer).train
    assert made == ["a.jsonl"] * 2
    assert "answer 8" in tokenizer.decode(data[7]["input_ids"])


def test_places_are_where_the_file_is_now(rows: Path, tokenizer: Any, make_plan: Any, made: list[str]) -> None:
    with rows.open("a") as file:
        file.write('\n{"instruction": "q", "output": ""}\n{"instruction": "' + "long " * 99 + '", "output": "a"}')
    options = {"on_bad_row": "skip", "cutoff_len": 40}
    first = chat_datasets(make_plan("a.jsonl", **options), tokenizer)
    moved = rows.rename(rows.parent / "b.jsonl")
    again = chat_datasets(make_plan("b.jsonl", **options), tokenizer)
    assert made == ["a.jsonl"]
    (one,), (other,) = first.accounting.train, again.accounting.train
    assert str(other.bad[0]) == str(one.bad[0]).replace("a.jsonl", "b.jsonl")
    assert other.untrainable == {
        why: [replace(place, file=str(moved)) for place in places] for why, places in one.untrainable.items()
    }
    assert str(again.train.places[3]) == f"{moved}:4"


def test_the_tokenizer_counts(rows: Path, make_plan: Any, made: list[str]) -> None:
    for change in ("", "vocabulary", "added", "eos", ""):
        one = tiny_tokenizer(vocab_size=400 if change == "vocabulary" else 512)
        if change == "added":
            one.add_tokens(["answer"])
        if change == "eos":
            one.eos_token = "<|endoftext|>"
        chat_datasets(make_plan("a.jsonl"), one)
    assert made == ["a.jsonl"] * 4


def test_versions_and_code_count(
    rows: Path, tokenizer: Any, make_plan: Any, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_datasets(make_plan("a.jsonl"), tokenizer)
    real = fingerprint.importlib.metadata.version
    for package in ("ftcore", "tokenizers", "transformers", "jinja2"):
        with monkeypatch.context() as patch:
            patch.setattr(
                fingerprint.importlib.metadata, "version", lambda one, p=package: real(one) + "x" * (one == p)
            )
            chat_datasets(make_plan("a.jsonl"), tokenizer)
    plan = make_plan("a.jsonl")
    offers = [replace(offer, version="9") for offer in plan.plugins.offers]
    monkeypatch.setattr(plan.plugins, "offers", tuple(offers))
    chat_datasets(plan, tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "sources_sha256", lambda sources: "other")
        chat_datasets(make_plan("a.jsonl"), tokenizer)
    assert len(made) == 7
    chat_datasets(make_plan("a.jsonl"), tokenizer)
    assert len(made) == 7


def entry(root: Path) -> Path:
    (found,) = [path for path in (root / "v2" / "tokens").iterdir() if path.is_dir()]
    return found


@pytest.mark.parametrize("name", ["ids", "weights", "reasons", "offsets", "places", "manifest.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_damage_is_found(
    name: str, damage: str, rows: Path, tokenizer: Any, make_plan: Any, made: list[str], root: Path
) -> None:
    first = chat_datasets(make_plan("a.jsonl"), tokenizer).train
    expected = [first[number]["input_ids"].tolist() for number in range(20)]
    del first
    file = entry(root) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    again = chat_datasets(make_plan("a.jsonl"), tokenizer).train
    assert made == ["a.jsonl"] * 2
    assert [again[number]["input_ids"].tolist() for number in range(20)] == expected


def test_overwrite(rows: Path, tokenizer: Any, make_plan: Any, made: list[str]) -> None:
    held = chat_datasets(make_plan("a.jsonl"), tokenizer).train
    chat_datasets(make_plan("a.jsonl", overwrite_cache=True), tokenizer)
    assert made == ["a.jsonl"] * 2
    assert tokenizer.decode(held[19]["input_ids"]).endswith("answer 19<|im_end|>\n")  # mapped files stay while used


def test_a_cut_off_attempt_leaves_nothing(rows: Path, tokenizer: Any, make_plan: Any, root: Path) -> None:
    def progress(name: str, count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat_datasets(make_plan("a.jsonl", preprocessing_batch_size=5), tokenizer, progress=progress)
    assert [path for path in (root / "v2" / "tokens").iterdir() if path.is_dir()] == []
    assert len(chat_datasets(make_plan("a.jsonl"), tokenizer).train) == 20


def test_what_a_killed_process_left_is_removed(rows: Path, tokenizer: Any, make_plan: Any, root: Path) -> None:
    chat_datasets(make_plan("a.jsonl"), tokenizer)
    left = entry(root).rename(entry(root).with_name(f".tmp-1-0-{entry(root).name}"))
    (left / "rubbish").touch()
    chat_datasets(make_plan("a.jsonl"), tokenizer)
    assert not left.exists()
    assert not (entry(root) / "rubbish").exists()


def test_a_full_disk(rows: Path, tokenizer: Any, make_plan: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, table: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TableWriter, "append", full)
    with pytest.raises(RunError, match=r"tokens cannot be written to .*: No space left on device; free some space, or"):
        chat_datasets(make_plan("a.jsonl"), tokenizer)
    assert [path for path in (root / "v2" / "tokens").iterdir() if path.is_dir()] == []


def test_without_a_cache(rows: Path, tokenizer: Any, make_plan: Any, made: list[str], tmp_path: Path) -> None:
    """Where it cannot be written, a run's tokens go with it."""
    (tmp_path / "file").touch()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FT_CACHE", str(tmp_path / "file"))
        patch.setattr(cache.tempfile, "tempdir", str(temporary))
        data = chat_datasets(make_plan("a.jsonl"), tokenizer).train
        assert len(list(temporary.iterdir())) == 1
        assert tokenizer.decode(data[0]["input_ids"]).endswith("answer 0<|im_end|>\n")
        del data
    assert list(temporary.iterdir()) == []
    assert made == ["a.jsonl"]


# ---- tokenized_path ----


def test_a_named_folder_is_used_or_refused(
    rows: Path, tokenizer: Any, make_plan: Any, made: list[str], tmp_path: Path
) -> None:
    named = {"tokenized_path": str(tmp_path / "tokens")}
    first = chat_datasets(make_plan("a.jsonl", **named), tokenizer).train
    again = chat_datasets(make_plan("a.jsonl", **named), tokenizer).train
    assert same(first, again)
    assert made == ["a.jsonl"]
    with pytest.raises(UsageError) as caught:
        chat_datasets(make_plan("a.jsonl", cutoff_len=30, **named), tokenizer)
    assert str(caught.value) == (
        f"tokenized_path: {tmp_path}/tokens/a.jsonl does not match dataset 'a.jsonl' of this run: "
        "cutoff_len was 2048, now it is 30; write another tokenized_path, or overwrite_cache: true to recreate it"
    )
    chat_datasets(make_plan("a.jsonl", cutoff_len=30, overwrite_cache=True, **named), tokenizer)
    chat_datasets(make_plan("a.jsonl", cutoff_len=30, **named), tokenizer)
    assert made == ["a.jsonl"] * 2
    (tmp_path / "tokens" / "a.jsonl" / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="of this run: it is damaged, an image has changed, or ft did not write it; "):
        chat_datasets(make_plan("a.jsonl", cutoff_len=30, **named), tokenizer)


def test_overwriting_a_named_folder_leaves_what_others_put_there(
    rows: Path, tokenizer: Any, make_plan: Any, tmp_path: Path
) -> None:
    """A dataset's own folder, of the same name, where ``tokenized_path`` is the folder of the data."""
    raw = tmp_path / "tokens" / "a.jsonl"
    raw.mkdir(parents=True)
    (raw / "part-0.parquet").write_text("raw")
    with pytest.raises(UsageError) as caught:
        chat_datasets(make_plan("a.jsonl", tokenized_path=str(raw.parent), overwrite_cache=True), tokenizer)
    assert str(caught.value) == (
        f"tokenized_path: {raw} holds files that ft did not write (part-0.parquet); "
        "write another tokenized_path; overwrite_cache: true recreates dataset 'a.jsonl' there"
    )
    assert (raw / "part-0.parquet").read_text() == "raw"


def test_a_named_folder_holds_training_and_evaluation(
    tmp_path: Path, rows: Path, tokenizer: Any, make_plan: Any, made: list[str]
) -> None:
    (tmp_path / "set").mkdir()
    shutil.copy(rows, tmp_path / "set" / "train.jsonl")
    (tmp_path / "set" / "validation.jsonl").write_text('{"instruction": "q", "output": "v"}')
    for _ in range(2):
        data = chat_datasets(make_plan("set", do_eval=True, tokenized_path=str(tmp_path / "tokens")), tokenizer)
        assert (len(data.train), len(data.eval)) == (20, 1)
    assert made == ["set", "set"]


def test_a_named_folder_that_cannot_be(rows: Path, tokenizer: Any, make_plan: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file cannot be written: "):
        chat_datasets(make_plan("a.jsonl", tokenized_path=str(tmp_path / "file")), tokenizer)


# ---- the parts ----


def test_hashes_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    read: list[Path] = []
    digest = file_digests.contents_sha256
    monkeypatch.setattr(file_digests, "contents_sha256", lambda one: read.append(one) or digest(one))
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert [file_sha256(path) for _ in range(2)] == [known] * 2
    assert len(read) == 2  # it changed a moment ago and might change again
    monkeypatch.setattr(file_digests, "_RECENT_NS", 0)
    assert [file_sha256(path) for _ in range(3)] == [known] * 3
    assert len(read) == 3
    for memory in (tmp_path / "cache" / "v2" / "file-digests").glob("*/manifest.json"):
        memory.write_text("[]")
    assert file_sha256(path) == known
    assert len(read) == 4


def table(lengths: list[int], file: str = "f") -> Table:
    random = np.random.default_rng(len(lengths))
    rows = [
        TokenizedRow(
            Place(file, number + 1, number),
            random.integers(0, 99, length).astype(np.int32),
            random.random(length).astype(np.float32),
            random.integers(0, 8, length).astype(np.uint8),
        )
        for number, length in enumerate(lengths)
    ]
    return Table.of(rows)


@pytest.mark.parametrize("parts", [[], [[]], [[3, 0, 2]], [[1], [], [2, 2], [0]]])
def test_tables_are_read_back(tmp_path: Path, parts: list[list[int]]) -> None:
    with TableWriter(tmp_path, ["e", "f"]) as writer:
        for lengths in parts:
            writer.append(table(lengths))
        digests = writer.digests()
    found = read_table(tmp_path, ["e", "f"], digests)
    whole = [table(lengths) for lengths in parts]
    assert np.diff(found.offsets).tolist() == [length for lengths in parts for length in lengths]
    for name in ("ids", "weights", "reasons"):
        expected = np.concatenate([getattr(one, name) for one in whole]) if whole else np.zeros(0)
        assert np.array_equal(getattr(found, name), expected)
    assert list(found.places) == [place for one in whole for place in one.places]
    if len(parts) == 1:
        assert found.fingerprint == whole[0].fingerprint


def test_key_parts_name_what_differs(rows: Path, tokenizer: Any, make_plan: Any) -> None:
    parts = [
        key_parts(plan.datasets[0], plan, renderer_of(plan, tokenizer), "whole")
        for plan in (make_plan("a.jsonl"), make_plan("a.jsonl", cutoff_len=9, template="llama3"))
    ]
    assert [line.split(" was ")[0] for line in fingerprint.differences(*parts)] == ["template", "cutoff_len"]


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ftcore.data.row_stats import RowCounts
from ftcore.data.storage.cache import Store
from ftcore.data.storage.arrays import Table, TokenizedRow
from ftcore.api.samples import Place
import numpy as np, time
made, killed = [], len(sys.argv) > 3
def fill(writer, counts):
    made.append(1)
    for number in range(5):
        ids = np.full(9, number, np.int32)
        row = TokenizedRow(Place("f", number, 1), ids, np.ones(9, np.float32), np.ones(9, np.uint8))
        writer.append(Table.of([row]))
        counts.rows += 1
        time.sleep(600 if killed else 0.1)
counts = RowCounts(name="d")
table = Store(Path(sys.argv[2])).table("d", {"a": "1"}, ["f"], fill, counts)
print(json.dumps([len(made), counts.rows, table.ids.tolist()]))
"""


@pytest.mark.slow
def test_processes_wait_for_each_other(tmp_path: Path) -> None:
    """Of three that start together one makes the tokens; one that is killed in the middle is in nobody's way."""
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / "store")]
    killed = subprocess.Popen([*command, "killed"], stdout=subprocess.PIPE)
    tokens = tmp_path / "store" / "tokens"
    while not tokens.is_dir() or not list(tokens.glob(".tmp-*")):
        time.sleep(0.05)
        assert killed.poll() is None
    killed.kill()
    killed.communicate()
    together = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = [json.loads(one.communicate(timeout=120)[0]) for one in together]
    assert sorted(one[0] for one in found) == [0, 0, 1]
    assert all(one[1:] == [5, [number for number in range(5) for _ in range(9)]] for one in found)
    assert len([path for path in tokens.iterdir() if path.is_dir()]) == 1
