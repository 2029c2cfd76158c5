"""Names, files, folders and hub ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftcore.api.dataset_spec import DatasetSpec
from ftcore.data.sources.resolve import data_files, has_split, resolve


def info(folder: Path, text: Any) -> None:
    (folder / "dataset_info.json").write_text(text if isinstance(text, str) else json.dumps(text, indent=1))


def problems(names: list[str], folder: Path) -> list[str]:
    return [
        str(problem).replace(str(folder), "DIR") for problem in resolve(names, dataset_dir=folder, where="x.yaml:3")[1]
    ]


def test_described_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    entry = {"file_name": "a.json", "formatting": "messages", "columns": {"messages": "turns"}, "num_samples": 7}
    info(tmp_path, {"a": entry, "b": {"hf_hub_url": "org/b", "subset": "s", "split": "test", "folder": "f"}})
    specs, found = resolve(["a", "b"], dataset_dir=tmp_path, where="x.yaml:3")
    assert found == []
    assert specs == (
        DatasetSpec(
            name="a",
            path=tmp_path / "a.json",
            format="messages",
            columns={"messages": "turns"},
            num_samples=7,
            where="x.yaml:3",
        ),
        DatasetSpec(name="b", path=None, hub_id="org/b", subset="s", split="test", folder="f", where="x.yaml:3"),
    )


def test_names_files_and_hub_ids_need_no_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "here.jsonl").write_text("{}")
    (tmp_path / "data" / "there.csv.gz").write_text("a")
    monkeypatch.chdir(tmp_path)
    specs, found = resolve(["here.jsonl", "there.csv.gz", "org/name"], dataset_dir="data")
    assert found == []
    assert [(spec.path, spec.hub_id) for spec in specs] == [
        (Path("here.jsonl"), ""),
        (Path("data/there.csv.gz"), ""),
        (None, "org/name"),
    ]


def test_every_mistake_at_once(tmp_path: Path) -> None:
    (tmp_path / "alpaca.json").write_text("[]")
    (tmp_path / "notes.md").write_text("")
    info(
        tmp_path,
        {
            "alpaca": {"file_name": "alpaca.json"},
            "gone": {"file_name": "alpaca.jsn"},
            "odd": {"file_name": "alpaca.json", "formating": "x", "ranking": "yes", "columns": {"a": 1}},
            "bare": {},
            "script": {"script_url": "x"},
        },
    )
    assert problems(["alpca", "zzz", "data/x.json", "notes.md", "gone", "odd", "bare", "script"], tmp_path) == [
        "x.yaml:3: no dataset 'alpca'; did you mean alpaca or alpaca.json?",
        "x.yaml:3: no dataset 'zzz'; DIR/dataset_info.json describes alpaca, bare, gone, odd, script",
        "x.yaml:3: no dataset 'data/x.json'; did you mean alpaca.json?",
        "x.yaml:3: dataset 'notes.md': cannot tell the format of DIR/notes.md; "
        "data files end in .json, .jsonl, .csv, .tsv, .parquet, .arrow, .feather, .txt",
        "DIR/dataset_info.json:5: dataset 'gone' names DIR/alpaca.jsn, which does not exist; did you mean alpaca.json?",
        "DIR/dataset_info.json:10: dataset 'odd' has an unknown key 'formating'; did you mean formatting?",
        "DIR/dataset_info.json:11: dataset 'odd': ranking must be true or false, not 'yes'",
        "DIR/dataset_info.json:12: dataset 'odd': columns must be an object whose values are strings, not {'a': 1}",
        "DIR/dataset_info.json:16: dataset 'bare' has no source; write file_name or hf_hub_url",
        "DIR/dataset_info.json:18: dataset 'script': script_url is not supported; "
        "dataset scripts run third-party code and are not supported; write file_name",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": {"file_name": "a.json",}\n}', "DIR/dataset_info.json:1:30: not JSON: "),
        ('{"a": {},\n"a": {}}', "DIR/dataset_info.json:2:1: 'a' occurs twice in one object; keep one of the two"),
        ("[]", "DIR/dataset_info.json:1: must be an object: dataset name -> description"),
    ],
)
def test_broken_description_is_the_only_problem(tmp_path: Path, text: str, expected: str) -> None:
    info(tmp_path, text)
    (found,) = problems(["a"], tmp_path)
    assert found.startswith(expected)


def test_no_folder_and_no_description(tmp_path: Path) -> None:
    assert problems(["a"], tmp_path) == [
        "x.yaml:3: no dataset 'a'; there is no DIR/dataset_info.json; files there: none"
    ]
    assert problems(["a"], tmp_path / "no") == [
        "x.yaml:3: no dataset 'a'; dataset_dir 'DIR' is not a folder; set dataset_dir, or write the path of a file"
    ]


def test_folder_with_splits(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("train-2.json", "train-1.json", "valid.jsonl", "test.csv", "README.md", "dataset_info.json"):
        (folder / name).write_text("x")
    (spec,), found = resolve([str(folder)], dataset_dir=tmp_path)
    assert found == []
    assert [file.name for file in data_files(spec)] == ["train-1.json", "train-2.json"]
    assert has_split(spec, "validation")
    (spec,), _ = resolve([str(folder)], dataset_dir=tmp_path, evaluation=True)
    assert [file.name for file in data_files(spec)] == ["valid.jsonl"]


def test_folder_without_splits_is_all_training_data(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("x")
    (tmp_path / "a.parquet").write_text("x")
    (spec,), found = resolve([str(tmp_path)], dataset_dir=tmp_path)
    assert found == []
    assert [file.name for file in data_files(spec)] == ["a.parquet", "b.json"]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    for folder, files in {
        "empty": ["README.md"],
        "test_only": ["test.json"],
        "mixed": ["train.json", "more.json"],
    }.items():
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file).write_text("x")
    assert problems(["empty", "test_only", "mixed"], tmp_path) == [
        "x.yaml:3: folder DIR/empty holds no data; "
        "data files end in .json, .jsonl, .csv, .tsv, .parquet, .arrow, .feather, .txt",
        "x.yaml:3: folder DIR/test_only has no 'train' split; available splits: test",
        "x.yaml:3: folder DIR/mixed mixes split files with other data files: more.json; "
        "rename the other files to train-..., or move them to another folder",
    ]


def test_further_addresses_and_empty_values(tmp_path: Path) -> None:
    """Other tools' files name two hubs at once, and write what they do not mean as null or as nothing."""
    (tmp_path / "a.json").write_text("[]")
    info(
        tmp_path,
        {
            "hub": {"hf_hub_url": "org/a", "ms_hub_url": "org/b", "om_hub_url": "org/c", "file_name": "a.json"},
            "file": {
                "file_name": "a.json",
                "hf_hub_url": "",
                "script_url": "",
                "cloud_file_name": None,
                "formatting": "",
                "subset": "",
                "ranking": True,
                "columns": {"prompt": "q", "query": "", "system": None},
                "tags": {"role_tag": "who", "content_tag": ""},
            },
            "ms": {"ms_hub_url": "org/b"},
            "cloud": {"cloud_file_name": "s3://x"},
        },
    )
    specs, found = resolve(["hub", "file"], dataset_dir=tmp_path, where="x.yaml:3")
    assert found == []
    assert specs == (
        DatasetSpec(name="hub", path=None, hub_id="org/a", where="x.yaml:3"),
        DatasetSpec(
            name="file",
            path=tmp_path / "a.json",
            columns={"prompt": "q", "query": "", "system": ""},
            tags={"role_tag": "who"},
            ranking=True,
            where="x.yaml:3",
        ),
    )
    assert [line.split(": ", 1)[1] for line in problems(["ms", "cloud"], tmp_path)] == [
        "dataset 'ms': ms_hub_url is not supported; "
        "ModelScope is not supported; write hf_hub_url, or download the dataset and write file_name",
        "dataset 'cloud': cloud_file_name is not supported; "
        "cloud storage is not supported; download the file and write file_name",
    ]
