"""``ft cache``: what it shows, what it removes, and what it lets be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcore.cli import main
from ftcore.utils.content_store import CACHE_KINDS, FROZEN_LAYERS, MANIFEST, TOKENS, CacheKind, Entry, store_root
from ftcore.utils.file_lock import take

DAY = 86_400


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def ft(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``ft("cache", "list")``: what it prints on both streams; it must end with ``status``."""

    def run(*words: str, status: int = 0) -> str:
        with pytest.raises(SystemExit) as end:
            main(list(words))
        assert (end.value.code or 0) == status
        printed = capsys.readouterr()
        return printed.out + printed.err

    return run


def kept(kind: CacheKind, number: int, days: float = 0, size: int = 1000) -> Entry:
    """An entry of this size, so many days after its last use."""
    entry = Entry(kind, f"{number:032x}", store_root())

    def fill(folder: Path) -> None:
        if kind.files:
            (folder / kind.files[0].replace("*", "a")).write_bytes(bytes(size))

    entry.write(f"thing {number}", number, fill)
    used = time.time() - days * DAY
    os.utime(entry.folder / MANIFEST, (used, used))
    return entry


def manifest_size(entry: Entry) -> int:
    return (entry.folder / MANIFEST).stat().st_size


def test_an_empty_cache(ft: Any, cache: Path) -> None:
    assert ft("cache", "list") == f"0 entries in {cache}, 0 B\n"
    assert ft("cache", "prune") == ft("cache", "clear", "all") == f"freed 0 B in {cache}\n"
    assert not cache.exists()


def test_list_shows_every_kind(ft: Any, cache: Path) -> None:
    entries = [kept(kind, number) for number, kind in enumerate(CACHE_KINDS.values())]
    shown = json.loads(ft("cache", "list", "--json"))
    assert shown["cache"] == str(cache)
    assert shown["size"] == sum(one["size"] for one in shown["entries"])
    by_path = {one["path"]: one for one in shown["entries"]}
    assert len(by_path) == len(CACHE_KINDS) == 6
    for number, entry in enumerate(entries):
        one = by_path[str(entry.folder)]
        assert (one["kind"], one["purpose"]) == (entry.kind.name, entry.kind.purpose)
        assert (one["about"], one["in_use"], one["foreign_files"]) == (f"thing {number}", False, [])
        assert one["size"] == manifest_size(entry) + 1000 * bool(entry.kind.files)
        assert one["made_by"].startswith("ftcore ")
        assert one["last_used"].startswith(time.strftime("%Y-"))
    text = ft("cache", "list")
    assert text.startswith(f"6 entries in {cache}, ")
    for number, kind in enumerate(CACHE_KINDS.values()):
        assert f"\n{kind.name}: {kind.purpose}\n" in text
        assert f"  thing {number}\n" in text


def test_prune_by_age(ft: Any, cache: Path) -> None:
    old, new = kept(TOKENS, 0, days=31), kept(TOKENS, 1, days=29)
    freed = 1000 + manifest_size(old)
    text = ft("cache", "prune", "--older-than", "30d")
    assert text == f"tokens: removed 1 entry, {freed / 1000:.3g} kB\nfreed {freed / 1000:.3g} kB in {cache}\n"
    assert (old.folder.exists(), new.folder.exists()) == (False, True)


def test_prune_by_size_removes_the_least_recently_used_first(ft: Any) -> None:
    entries = [kept(FROZEN_LAYERS, number, days, 10_000) for number, days in enumerate((1, 4, 2, 3))]
    assert entries[1].read_value() == 1  # used now
    ft("cache", "prune", "--larger-than", "22kB")
    assert [entry.folder.exists() for entry in entries] == [True, True, False, False]
    ft("cache", "prune", "--larger-than", "0B")
    assert not any(entry.folder.exists() for entry in entries)


def test_what_is_in_use_stays(ft: Any) -> None:
    used, free, made = (kept(TOKENS, number, days=9) for number in range(3))
    with used.open(), made.making():
        os.utime(used.folder / MANIFEST, (1, 1))
        text = ft("cache", "prune", "--larger-than", "1B")
        assert f"tokens: {used.folder} stays, in use\n" in text
        assert f"tokens: {made.folder} stays, in use\n" in text
        ft("cache", "clear", "all")
        assert [entry.folder.exists() for entry in (used, free, made)] == [True, False, True]
        shown = json.loads(ft("cache", "list", "--json"))["entries"]
        assert [one["in_use"] for one in shown] == [True, True]
    ft("cache", "clear", "tokens")
    assert list((store_root() / "tokens").iterdir()) == []


def test_what_another_process_uses_stays(ft: Any) -> None:
    entry = kept(TOKENS, 0)
    script = (
        "from ftcore.utils.content_store import TOKENS, Entry, store_root\n"
        f"held = Entry(TOKENS, {entry.name!r}, store_root()).open(); print(held.value, flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    assert "stays, in use" in ft("cache", "clear", "tokens")
    process.kill()
    process.communicate()
    assert "stays" not in ft("cache", "clear", "tokens")
    assert not entry.folder.exists()


def test_clear_one_kind(ft: Any) -> None:
    entries = {kind: kept(kind, 7) for kind in CACHE_KINDS.values()}
    for number, kind in enumerate(entries):
        report = json.loads(ft("cache", "clear", kind.name, "--json"))
        (removed,) = report["removed"]
        assert (removed["kind"], removed["size"], report["stay"]) == (kind.name, report["freed"], [])
        assert [entry.folder.exists() for entry in entries.values()] == [False] * (number + 1) + [True] * (5 - number)


def test_wrong_words(ft: Any) -> None:
    assert ft("cache", "clear", "token", status=2) == (
        "error: the cache has no kind 'token'; write one of tokens, file-digests, reference, frozen-layers, "
        "capability-probes, matmul-choice, old, all\n"
    )
    assert ft("cache", "prune", "--older-than", "30", status=2) == (
        "error: --older-than: cannot read '30'; write a number with a unit, such as 30d; units are s, m, h, d, w\n"
    )
    assert "units are B, kB, KB, MB, GB, TB" in ft("cache", "prune", "--larger-than", "-1GB", status=2)


def test_damaged_and_half_written_entries_are_always_pruned(ft: Any) -> None:
    damaged, half, good = (kept(TOKENS, number) for number in range(3))
    (damaged.folder / MANIFEST).write_text("{")
    half.folder.rename(half.folder.with_name(f".tmp-1-0-{half.name}"))
    shown = json.loads(ft("cache", "list", "--json"))["entries"]
    assert sorted(one["about"] for one in shown) == ["damaged", "half written", "thing 2"]
    ft("cache", "prune")
    assert list(good.folder.parent.iterdir()) == [good.folder]


def test_what_ft_did_not_write_stays(ft: Any, cache: Path, tmp_path: Path) -> None:
    entry, linked = kept(TOKENS, 0), kept(TOKENS, 1)
    (entry.folder / "notes.txt").write_text("mine")
    linked.folder.rename(tmp_path / "elsewhere")
    linked.folder.symlink_to(tmp_path / "elsewhere")
    others = [
        *(store_root() / "tokens" / "notes" / "a.txt", store_root() / "other" / ("0" * 32) / MANIFEST),
        *(cache / "models" / "smollm" / "model.safetensors", cache / "data" / "rows.jsonl", cache / "notes.txt"),
        *(cache / "hashes" / "mine.json", cache / "prefix" / ("0" * 32) / "mine.txt"),
    ]
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    text = ft("cache", "clear", "all")
    assert f"tokens: {entry.folder} stays, holds files that ft did not write: notes.txt\n" in text
    assert text.endswith(f"freed 0 B in {cache}\n")
    ft("cache", "prune", "--older-than", "0d", "--larger-than", "0B")
    assert all(file.read_text() == "mine" for file in [*others, entry.folder / "notes.txt"])
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["ids", MANIFEST]


NAME = "0123456789abcdef" * 2
OLD = {
    "data": [f"{NAME}/ids", f"{NAME}/images", f"{NAME}/manifest.json", f".{NAME}.lock", f".{NAME}.part/ids"],
    "hashes": [f"{NAME}.json", f".{NAME}.json.17"],
    "reference": [f"{NAME}.safetensors", f".{NAME}.safetensors.17"],
    "prefix": [f"{NAME}/{NAME}.rows", f".{NAME}.lock"],
    "proven": [f"{NAME}.json", f".tmp-17-{NAME}.json"],
    "products.json": [""],
}
"""What versions before 0.2 left, in folders and one file."""


@pytest.fixture
def old(cache: Path) -> dict[str, list[Path]]:
    made = {name: [cache / name / file if file else cache / name for file in files] for name, files in OLD.items()}
    for files in made.values():
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes(100))
    return made


@pytest.mark.parametrize("words", [("clear", "old"), ("clear", "all"), ("prune",)], ids=" ".join)
def test_what_earlier_versions_kept_is_shown_and_removed(ft: Any, old: Any, cache: Path, words: Any) -> None:
    (cache / "data" / "mine.txt").write_text("mine")
    entry = kept(TOKENS, 0)
    shown = [one for one in json.loads(ft("cache", "list", "--json"))["entries"] if one["kind"] == "old"]
    assert {Path(one["path"]).name: one["size"] for one in shown} == {name: 100 * len(old[name]) for name in OLD}
    assert "\nold: entries of earlier versions, no longer read\n" in ft("cache", "list")
    assert "old: removed 6 entries, 1.4 kB\n" in ft("cache", *words)
    assert entry.folder.exists() == (words != ("clear", "all"))
    assert sorted(path.name for path in cache.iterdir()) == ["data", "v2"]
    assert [path.name for path in (cache / "data").iterdir()] == ["mine.txt"]


def test_clearing_a_kind_leaves_the_old_ones(ft: Any, old: Any) -> None:
    ft("cache", "clear", "tokens")
    assert all(file.exists() for files in old.values() for file in files)


@pytest.mark.parametrize("folder", ["data", "prefix"])
def test_what_an_earlier_version_uses_stays(ft: Any, old: Any, folder: str) -> None:
    (lock,) = [file for file in old[folder] if file.name.endswith(".lock")]
    with lock.open("a") as stream:
        take(stream, lock, shared=True)
        assert f"old: {lock.parent} stays, in use\n" in ft("cache", "prune")
        assert all(file.exists() for file in old[folder])
    ft("cache", "prune")
    assert not lock.parent.exists()


def test_it_needs_no_torch() -> None:
    script = (
        "import sys\nfrom ftcore.cli import main\n"
        "try: main(['cache', 'list'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
