"""Only what ft wrote is deleted or replaced: every kind of thing that may lie in an output folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ftcore.api.registry import Plugins
from ftcore.config.planner import make_plan
from ftcore.config.validation import output_folder
from ftcore.errors import RunError, UsageError
from ftcore.training.checkpointing import directory
from ftcore.training.checkpointing.directory import RunFingerprint
from ftcore.utils import ownership
from ftcore.utils.ownership import foreign_files, is_ours, is_staged, keep_aside, not_ours

Write = Callable[..., Path]


def own(folder: Path, step: int) -> Path:
    """A checkpoint of ft, with the files by which one is known that has lost its manifest."""
    staged = directory.stage(folder, step)
    for name in ("adapter_model.safetensors", "progress.json", "random-0.json"):
        (staged / name).write_text(f"{name} of step {step}")
    return directory.commit(staged, step, RunFingerprint(), resumable=True, versions={})


def another_trainers(folder: Path, step: int) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    for name in ("trainer_state.json", "optimizer.pt", "rng_state.pth", "scheduler.pt", "model.safetensors"):
        (made / name).write_text("weeks of work")
    return made


def with_notes(folder: Path, step: int) -> Path:
    made = own(folder, step)
    (made / "notes").mkdir()
    (made / "notes" / "thesis.md").write_text("x")
    return made


def without_manifest(folder: Path, step: int) -> Path:
    made = own(folder, step)
    (made / "MANIFEST.json").unlink()
    return made


def spoilt_manifest(folder: Path, step: int) -> Path:
    made = own(folder, step)
    (made / "MANIFEST.json").write_text("{")
    return made


def without_manifest_with_notes(folder: Path, step: int) -> Path:
    made = without_manifest(folder, step)
    (made / "weights.pt").write_text("x")
    return made


def strange_manifest(folder: Path, step: int) -> Path:
    """Another program's file of the same name."""
    made = another_trainers(folder, step)
    (made / "MANIFEST.json").write_text(json.dumps({"files": {}, "seal": "none"}))
    return made


def linked(folder: Path, step: int) -> Path:
    target = own(folder.parent / "elsewhere", step)
    folder.mkdir(exist_ok=True)
    (folder / target.name).symlink_to(target)
    return folder / target.name


def dangling(folder: Path, step: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"checkpoint-{step}").symlink_to("nowhere")
    return folder / f"checkpoint-{step}"


def a_file(folder: Path, step: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"checkpoint-{step}").write_text("x")
    return folder / f"checkpoint-{step}"


def empty(folder: Path, step: int) -> Path:
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    return folder / f"checkpoint-{step}"


REASONS = {
    own: "",
    without_manifest: "",
    spoilt_manifest: "",
    empty: "",
    another_trainers: "was not written by ft",
    strange_manifest: "was not written by ft",
    with_notes: "holds files that ft did not write (notes/thesis.md)",
    without_manifest_with_notes: "holds files that ft did not write (weights.pt)",
    linked: "is a symbolic link",
    dangling: "is a symbolic link",
    a_file: "is not a folder",
}


def lying(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder: contents of files, targets of links."""
    found = {path: path.readlink() if path.is_symlink() else None for path in folder.rglob("*")}
    return {
        str(path.relative_to(folder)): str(link) if link else path.read_bytes() if path.is_file() else "folder"
        for path, link in found.items()
    }


@pytest.mark.parametrize("make", REASONS, ids=lambda make: make.__name__)
def test_what_may_be_replaced_and_what_stays(make: Callable[[Path, int], Path], tmp_path: Path) -> None:
    """A commit in its place, a limit, and what an earlier run left: one answer for all three."""
    out = tmp_path / "out"
    made = make(out, 3)
    reason = REASONS[make]
    assert not_ours(made) == reason
    assert (made in directory.earlier_checkpoints(out)) == (not reason)
    before = lying(tmp_path)
    staged = directory.stage(out, 3)
    (staged / "weights").write_text("new")
    if reason:
        with pytest.raises(RunError) as error:
            directory.commit(staged, 3, RunFingerprint(), resumable=True, versions={})
        assert str(error.value) == f"{made} {reason}, and is not replaced; move it away and run the same command again"
        directory.clean(out)
        own(out, 4)
        own(out, 5)
        directory.prune(out, 1, None)
        assert not (out / "checkpoint-4").exists()
        assert {name: found for name, found in lying(tmp_path).items() if "checkpoint-5" not in name} == before
    else:
        directory.commit(staged, 3, RunFingerprint(), resumable=True, versions={})
        assert {path.name for path in made.iterdir()} == {"weights", "MANIFEST.json"}


def test_links_are_not_followed_when_a_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    linked(out, 3)
    assert directory.checkpoints(out) == []
    assert directory.find_resumable(out, RunFingerprint()) is None
    first = own(out, 1)
    assert directory.find_resumable(out, RunFingerprint()) == first


def test_only_what_ft_stages_is_cleared_away(tmp_path: Path) -> None:
    ours = [".tmp-3-4711", ".tmp-0-4711", ".tmp-trained-4711", ".tmp-hub-checkpoint-3-4711"]
    theirs = [".tmp-work", ".tmp-", ".tmp-3", ".tmp-3-x", "tmp-3-4711"]
    for name in ours + theirs:
        (tmp_path / name).mkdir()
    (tmp_path / ".tmp-4711-ft_run.json").write_text("half")
    (tmp_path / ".tmp-notes.txt").write_text("x")
    (tmp_path / ".tmp-7-4711").symlink_to(tmp_path / ".tmp-work")
    assert is_staged(tmp_path / ".tmp-3-4711")
    directory.clean(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, ".tmp-notes.txt", ".tmp-7-4711"}


def test_a_folder_is_ours_by_what_only_ft_writes(tmp_path: Path) -> None:
    for name, make in {"own": own, "lost": without_manifest, "notes": with_notes}.items():
        make(tmp_path / name, 1)
        assert is_ours(tmp_path / name)
    for name, make in {"other": another_trainers, "strange": strange_manifest, "link": linked, "file": a_file}.items():
        make(tmp_path / name, 1)
        assert not is_ours(tmp_path / name)


def test_foreign_files_are_noted_once(tmp_path: Path) -> None:
    another_trainers(tmp_path, 3)
    for name in ("adapter_model.safetensors", "thesis.txt", ".ft.lock", "ft_run.log", ".tmp-3-4711"):
        (tmp_path / name).write_text(name)
    assert foreign_files(tmp_path) == [".tmp-3-4711", "adapter_model.safetensors", "thesis.txt"]
    noted = {"foreign_files": ["adapter_model.safetensors", "gone.txt"]}
    (tmp_path / "ft_run.json").write_text(json.dumps(noted))
    assert foreign_files(tmp_path) == ["adapter_model.safetensors"]
    for _ in range(2):
        keep_aside(tmp_path / "adapter_model.safetensors")
        assert (tmp_path / "adapter_model.safetensors.before-ft").read_text() == "adapter_model.safetensors"
        (tmp_path / "adapter_model.safetensors").write_text("ft's own")
    assert foreign_files(tmp_path) == []
    assert foreign_files(tmp_path / "none") == []


@pytest.fixture
def said(write_config: Write, built_in: Plugins, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """``said(folder, *overrides)``: problems with an output_dir, else warnings, of its plan."""
    monkeypatch.setenv("HOME", str(tmp_path / "users" / "me"))
    (tmp_path / "users" / "me").mkdir(parents=True)

    def call(folder: Path | str, *overrides: str) -> list[str]:
        try:
            plan = make_plan(write_config(), [f"output_dir={folder}", *overrides], plugins=built_in)
        except UsageError as error:
            return [str(problem) for problem in error.problems]
        return list(plan.warnings)

    return call


def test_folders_that_no_run_may_write_to(
    said: Callable, config_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line each, whether or not the file says overwrite_output_dir."""
    home = tmp_path / "users" / "me"
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "root").symlink_to("/")
    os.mkfifo(tmp_path / "fifo")
    expected = {
        "/": "is the root of the file system",
        tmp_path / "root": "is the root of the file system",
        home: "is your home folder",
        "~/": "is your home folder",
        home.parent: "holds your home folder",
        tmp_path / "file": "is a file",
        tmp_path / "file" / "below" / "it": f"lies under {tmp_path / 'file'}, which is a file",
        tmp_path / "fifo": "is not a folder",
        tmp_path / "dangling": f"is a symbolic link to {tmp_path / 'nowhere'}, which does not exist",
        tmp_path / "dangling" / "out": (
            f"lies under {tmp_path / 'dangling'}, which is a symbolic link to {tmp_path / 'nowhere'}, "
            "which does not exist"
        ),
        tmp_path / "loop": f"is a symbolic link to {tmp_path / 'loop'}, which does not exist",
        tmp_path / ("x" * 300): "cannot be used: File name too long",
        config_dir: "is the folder of model_name_or_path, whose files the run would replace",
    }
    for folder, reason in expected.items():
        shown = Path(folder).expanduser()
        for words in ((), ("overwrite_output_dir=true",)):
            line = f"command line: output_dir {shown} {reason}; write another folder"
            assert said(folder, *words) == [line], folder
    monkeypatch.setattr(output_folder.os, "access", lambda *_: False)
    for folder in (tmp_path / "deep" / "out", tmp_path / "deeper"):
        assert f"output_dir {folder} is not writable: Permission denied" in said(folder)


def test_links_to_folders_and_new_folders_are_fine(said: Callable, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for folder in (tmp_path / "link", tmp_path / "link" / "new" / "out", tmp_path / "new"):
        assert said(folder) == []


def test_what_stays_is_named_by_the_plan(said: Callable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    another_trainers(out, 7)
    linked(out, 9)
    own(out, 11)
    assert said(out) == said(out, "overwrite_output_dir=true")  # it has a checkpoint of ft
    assert said(out, "overwrite_output_dir=true") == [
        f"{out}/checkpoint-7 was not written by ft: it stays, and a run that has to write checkpoint-7 is refused",
        f"{out}/checkpoint-9 is a symbolic link: it stays, and a run that has to write checkpoint-9 is refused",
    ]
    other = tmp_path / "other"
    another_trainers(other, 7)
    (other / "thesis.txt").write_text("x")
    assert said(other) == [
        f"command line: output_dir {other} holds files that no run of ft wrote; write another folder, or "
        "overwrite_output_dir: true, which keeps these files and adds the run's"
    ]
    assert said(other, "overwrite_output_dir=true")[1:] == [
        f"{other} holds files that no run of ft wrote: thesis.txt; they stay; if this run writes a file of the "
        "same name, the existing one is renamed NAME.before-ft"
    ]


def test_a_checkpoint_that_may_not_be_looked_into_or_goes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = another_trainers(tmp_path, 3)
    with monkeypatch.context() as patch:
        patch.setattr(ownership.os, "access", lambda *_: False)
        assert not_ours(made) == "cannot be read"

    def gone(folder: Path) -> None:
        shutil.rmtree(folder)

    monkeypatch.setattr(ownership, "sealed_manifest", gone)
    assert not_ours(made) == ""
    assert not_ours(tmp_path / "checkpoint-4") == ""
