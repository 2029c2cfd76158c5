"""The content store: named by inputs and sources, whole or not there, made once, removed only where nobody uses it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ft_plugins
import ftcore
from ft_plugins.backends.cpu import matmul, matmul_autotune
from ftcore.cli import main
from ftcore.data import fingerprint
from ftcore.data.storage.arrays import ARRAYS
from ftcore.errors import RunError
from ftcore.testing import tiny_model
from ftcore.training.model_transforms import capability_cache, frozen_layers
from ftcore.training.reference import logprob_cache
from ftcore.utils import file_digests, hashing
from ftcore.utils.cache_pruning import list_kept
from ftcore.utils.content_store import (
    CACHE_KINDS,
    FILE_DIGESTS,
    MANIFEST,
    TOKENS,
    Entry,
    entry_name,
    store_root,
)
from ftcore.utils.file_lock import made_under, take
from ftcore.utils.hashing import file_hash, json_sha256, sha256_of, sources_sha256

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""sha256 of "abc", of FIPS 180-2."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- names ----


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc")
    assert sha256_of("a", b"b", bytearray(b"c")) == hashing.contents_sha256(tmp_path / "a") == ABC
    assert file_hash(tmp_path / "a") == ABC
    assert file_hash(tmp_path) == sha256_of("aabc")
    assert json_sha256({"b": 1, "a": 2}) == json_sha256({"a": 2, "b": 1}) == sha256_of('{"a": 2, "b": 1}')


def test_a_digest_of_sources_sees_every_file_of_a_package(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "deep" / "deeper").mkdir(parents=True)
    files = [package / name for name in ("__init__.py", "a.py", "deep/b.py", "deep/deeper/c.py")]
    for file in files:
        file.write_text("x = 1\n")

    def now() -> str:
        hashing._source.cache_clear()
        return sources_sha256([package])

    known = {now()}
    for number, file in enumerate(files):
        file.write_text("x = 2\n")
        known.add(now())
        assert len(known) == number + 2
    files[-1].rename(files[-1].with_name("d.py"))
    assert now() not in known
    assert now() == now()


def test_sources_count_once_and_in_any_order() -> None:
    assert sources_sha256([hashing, file_digests]) == sources_sha256([file_digests, hashing, file_digests])
    assert sources_sha256([hashing]) != sources_sha256([file_digests])
    assert sources_sha256([ftcore]) == sources_sha256([Path(ftcore.__file__).parent])


def test_names_are_of_inputs_and_sources() -> None:
    names = {entry_name(inputs, sources) for inputs in ("a", ["a"]) for sources in ((), (hashing,), (file_digests,))}
    assert len(names) == 6
    assert all(len(name) == 32 for name in names)


def test_every_digest_is_made_in_one_place() -> None:
    files = [file for package in (ftcore, ft_plugins) for file in Path(package.__file__).parent.rglob("*.py")]
    assert [file.name for file in files if "hashlib" in file.read_text(encoding="utf-8")] == ["hashing.py"]


def test_the_files_of_tokens_are_those_that_are_written() -> None:
    assert TOKENS.files == tuple(ARRAYS)


# ---- a changed source makes a kept thing anew ----

SOURCES: dict[str, tuple[ModuleType, ...]] = {
    "tokens": fingerprint.SOURCES,
    "file-digests": (hashing,),
    "reference": logprob_cache.SOURCES,
    "frozen-layers": frozen_layers.SOURCES,
    "capability-probes": capability_cache.SOURCES,
    "matmul-choice": matmul_autotune.SOURCES,
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., set[str]]:
    """``run("key=value")``: a run that needs every kind; the kinds of which it has kept something new."""
    monkeypatch.setattr(file_digests, "_RECENT_NS", 0)
    rows = [{"prompt": f"question {n}", "chosen": f"answer {n}", "rejected": f"no {n}"} for n in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    info = {"pairs": {"file_name": "rows.json", "ranking": True, "columns": columns}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    config = {
        "model_name_or_path": str(tiny_model(tmp_path / "model")),
        "stage": "dpo",
        "do_train": True,
        "finetuning_type": "freeze",
        "freeze_trainable_layers": 1,
        "cache_frozen_prefix": True,
        "template": "chatml",
        "dataset": "pairs",
        "dataset_dir": str(tmp_path),
        "num_train_epochs": 1,
        "output_dir": str(tmp_path / "out"),
        "overwrite_output_dir": True,
        "save_strategy": "no",
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))

    def kept() -> dict[Path, str]:
        return {one.path: one.kind.name for one in list_kept()}

    def new(*options: str) -> set[str]:
        before = kept()
        with matmul.choice_scope(matmul.get_choice()), pytest.raises(SystemExit) as end:
            main(["run", str(tmp_path / "run.yaml"), *options])
        assert not end.value.code
        return {kind for path, kind in kept().items() if path not in before}

    return new


@pytest.mark.slow
def test_a_changed_line_makes_every_kind_anew(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of a copy of the sources, whichever folder it is in; what was made by other sources stays."""
    assert SOURCES.keys() == CACHE_KINDS.keys()
    kinds = set(CACHE_KINDS) - ({"matmul-choice"} if matmul.onednn() is None else set())
    assert run() == kinds
    assert run() == {"file-digests"}  # of the tokens' files, which were not read by who wrote them
    assert run() == set()
    for module in {module for modules in SOURCES.values() for module in modules}:
        made_by_it = {kind for kind in kinds if module in SOURCES[kind]}
        own = Path(module.__file__)
        is_package = hasattr(module, "__path__")
        copy = tmp_path / "copies" / module.__name__ / (own.parent.name if is_package else own.name)
        if is_package:
            shutil.copytree(own.parent, copy)
        else:
            copy.parent.mkdir(parents=True)
            shutil.copy(own, copy)
        files = sorted(copy.rglob("*.py")) if is_package else [copy]
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(copy / own.name if is_package else copy))
            hashing._source.cache_clear()
            assert run() == set()  # the same sources elsewhere
            with files[-1].open("a") as file:
                file.write("# a line\n")
            hashing._source.cache_clear()
            assert run() == made_by_it
            if is_package:
                (copy / "some" / "folder").mkdir(parents=True)
                (copy / "some" / "folder" / "new.py").write_text("")
                hashing._source.cache_clear()
                assert run() == made_by_it
        hashing._source.cache_clear()


@pytest.mark.slow
def test_without_file_locking_nothing_is_locked(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[Any] = []
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: locked.append(arguments))
    kinds = set(CACHE_KINDS) - ({"matmul-choice"} if matmul.onednn() is None else set())
    assert run("use_file_locking=false") == kinds
    assert locked == []
    run("use_file_locking=true")
    assert locked


# ---- entries ----


def entry(**options: Any) -> Entry:
    return Entry(FILE_DIGESTS, "0" * 32, store_root(), **options)


def test_a_value_is_made_once() -> None:
    asked: list[int] = []

    def make() -> Any:
        asked.append(1)
        return {"number": len(asked)}

    assert [entry().value(make, "a number") for _ in range(3)] == [{"number": 1}] * 3
    assert entry().value(make, "a number", lambda kept: kept["number"] > 1) == {"number": 2}
    assert entry().value(make, "a number") == {"number": 2}
    assert sorted(path.name for path in entry().folder.parent.iterdir()) == ["0" * 32]


def test_a_cache_that_cannot_be_written_is_gone_without(cache: Path) -> None:
    cache.write_text("")
    assert entry().value(lambda: 1, "") == 1
    assert entry().open() is None


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"content": {"value": 2}, "seal": ""}'])
def test_a_damaged_value_is_made_anew(damage: str) -> None:
    entry().write("", 1)
    good = (entry().folder / MANIFEST).read_bytes()
    (entry().folder / MANIFEST).write_text(damage)
    assert entry().read_value() is None
    assert entry().open() is None
    assert entry().value(lambda: 1, "") == 1
    assert (entry().folder / MANIFEST).read_bytes() == good


@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_file_is_found(damage: str) -> None:
    entry().write("", None, lambda folder: (folder / "a").write_bytes(b"abcd") and None)
    file = entry().folder / "a"
    with entry().open() as held:
        assert held.files == {"a": sha256_of("abcd")}
        assert held.is_whole()
        file.write_bytes(b"abce" if damage == "bit" else b"abc")
        if damage == "gone":
            file.unlink()
        assert not held.is_whole()


def test_an_error_while_it_is_made_leaves_nothing() -> None:
    def fill(folder: Path) -> None:
        (folder / "a").write_bytes(b"a")
        raise ValueError("stopped")

    with entry().making(), pytest.raises(ValueError, match="stopped"):
        entry().write("", None, fill)
    assert list(entry().folder.parent.iterdir()) == []


def test_the_last_use_is_noted() -> None:
    entry().write("", 1)
    manifest = entry().folder / MANIFEST
    for use in (entry().read_value, lambda: entry().open().close()):
        os.utime(manifest, (1, 1))
        use()
        assert manifest.stat().st_mtime > 1


SCRIPT = """
import os, sys, time
from pathlib import Path
from ftcore.utils.content_store import FILE_DIGESTS, Entry, store_root
made = []
def fill(folder):
    (folder / "a").write_bytes(b"half")
    if sys.argv[1] == "stop":
        print("half", flush=True)
        time.sleep(600)
    time.sleep(0.5)
    (folder / "a").write_bytes(b"whole")
    made.append(1)
entry = Entry(FILE_DIGESTS, "0" * 32, store_root())
with entry.making():
    if entry.open() is None:
        entry.write("", None, fill)
print(len(made), (entry.folder / "a").read_text())
"""


def start(what: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, what], stdout=subprocess.PIPE, text=True)


def test_of_processes_that_start_together_one_makes_it() -> None:
    processes = [start("go") for _ in range(3)]
    found = sorted(process.communicate(timeout=120)[0].strip() for process in processes)
    assert found == ["0 whole", "0 whole", "1 whole"]


def test_a_kill_half_way_leaves_nothing_that_is_picked_up() -> None:
    killed = start("stop")
    assert killed.stdout.readline() == "half\n"
    (staged,) = entry().folder.parent.glob(".tmp-*")
    (kept,) = list_kept()
    assert (kept.about, kept.in_use, kept.remove()) == ("half written", True, False)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert entry().open() is None
    assert entry().read_value() is None
    assert start("go").communicate(timeout=120)[0] == "1 whole\n"
    assert not staged.exists()
    assert [path.name for path in entry().folder.parent.iterdir()] == ["0" * 32]


# ---- locks ----


def test_who_waits_for_a_lock_whose_file_was_removed_takes_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with made_under(path) as first, made_under(path, wait=False) as second:
        assert (first, second) == (True, False)
    assert not path.exists()
    waiting = (
        "import sys; from pathlib import Path; from ftcore.utils.file_lock import made_under\n"
        "with made_under(Path(sys.argv[1])) as held: print(held)"
    )
    with made_under(path):
        process = subprocess.Popen([sys.executable, "-c", waiting, str(path)], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1.5)
    assert process.communicate(timeout=60)[0] == "True\n"
    assert not path.exists()


def test_nothing_is_locked_where_that_is_not_wanted(tmp_path: Path) -> None:
    with made_under(tmp_path / "lock", locking=False) as held:
        assert held is False
        assert list(tmp_path.iterdir()) == []
    with (tmp_path / "a").open("w") as one, (tmp_path / "a").open("w") as other:
        assert take(one, tmp_path) is True
        assert take(other, tmp_path, locking=False) is False
        with pytest.raises(RunError, match="another process is writing"):
            take(other, tmp_path, locking=None)
