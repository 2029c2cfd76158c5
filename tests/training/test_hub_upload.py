"""Uploads to the hub: what goes there and when, and what a run is worth without the network; none is used here."""

from __future__ import annotations

import inspect
import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.errors import HfHubHTTPError

from ftcore.config.planner import make_plan
from ftcore.config.validation import hub as hub_checks
from ftcore.errors import RunError, UsageError
from ftcore.runner.run import run
from ftcore.training.callbacks import hub_upload as uploads

TOKEN = "hf_" + "s" * 20


class Hub:
    """A stand-in for the hub: it takes the calls that the real `HfApi` takes, and keeps what was uploaded."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.uploads: list[tuple[str, list[str]]] = []
        self.futures: list[Future[None]] = []
        self.done, self.errors = True, dict[str, Exception]()

    def make(self, **options: Any) -> Hub:
        inspect.signature(HfApi).bind(**options)
        assert options["token"] == TOKEN
        return self

    def _called(self, name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        taken = inspect.signature(getattr(HfApi, name)).bind(None, *args, **kwargs).arguments
        taken = {key: value for key, value in taken.items() if key != "self"}
        self.calls.append((name, taken))
        if name in self.errors:
            raise self.errors[name]
        return taken

    def create_repo(self, *args: Any, **kwargs: Any) -> RepoUrl:
        return RepoUrl(f"https://huggingface.co/me/{self._called('create_repo', *args, **kwargs)['repo_id']}")

    def create_branch(self, *args: Any, **kwargs: Any) -> None:
        self._called("create_branch", *args, **kwargs)

    def upload_folder(self, **kwargs: Any) -> Any:
        from huggingface_hub.utils import filter_repo_objects

        taken = self._called("upload_folder", **kwargs)
        root = Path(taken["folder_path"])
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        names = list(filter_repo_objects(names, ignore_patterns=taken.get("ignore_patterns")))
        self.uploads.append((taken.get("path_in_repo", ""), names))
        if not kwargs.get("run_as_future"):
            return None
        future: Future[None] = Future()
        if self.done:
            future.set_result(None)
        self.futures.append(future)
        return future


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub()
    monkeypatch.setattr(uploads, "HfApi", found.make)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub_checks, "offline", lambda: False)
    return found


@pytest.fixture
def trained(tiny_model_dir: Path, tmp_path: Path) -> Any:
    """``trained(option=value)``: runs, and gives the folder."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"say {n}", "output": f"{n}"}) + "\n" for n in range(8)))

    def make(**values: Any) -> Path:
        given = {"model_name_or_path": str(tiny_model_dir), "dataset": str(data), "template": "chatml"}
        given |= {
            "do_train": True,
            "max_steps": 4,
            "save_steps": 2,
            "logging_steps": 2,
            "output_dir": str(tmp_path / "my run"),
        }
        given |= {"push_to_hub": True, "hub_token": TOKEN, "hub_model_id": "adapter"}
        assert run(make_plan(None, values=given | values)) == 0
        return Path(str((given | values)["output_dir"]))

    return make


WEIGHTS = {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"}


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("end", [""]),
        ("every_save", ["", "", ""]),
        ("checkpoint", ["", "last-checkpoint", "", "last-checkpoint", ""]),
        ("all_checkpoints", ["", "checkpoint-2", "", "checkpoint-4", ""]),
    ],
)
def test_what_is_uploaded_and_when(strategy: str, expected: list[str], hub: Hub, trained: Any) -> None:
    out = trained(hub_strategy=strategy, hub_private_repo=True, hub_revision="try", save_total_limit=1)
    assert hub.calls[0] == ("create_repo", {"repo_id": "adapter", "private": True, "exist_ok": True})
    assert hub.calls[1] == ("create_branch", {"repo_id": "me/adapter", "branch": "try", "exist_ok": True})
    uploads = [call for name, call in hub.calls if name == "upload_folder"]
    assert [(call["repo_id"], call["revision"]) for call in uploads] == [("me/adapter", "try")] * len(expected)
    assert [place for place, _ in hub.uploads] == expected
    for place, names in hub.uploads:
        assert {*names} >= WEIGHTS
        assert ("optimizer.safetensors" in names) is bool(place), names
    last = hub.uploads[-1][1]
    assert {"ft_run.json", "trainer_log.jsonl", "all_results.json"} <= {*last}
    assert not any(name.startswith(("checkpoint-", ".tmp", ".ft")) for name in last)
    assert not [*out.glob(".tmp-*")]
    assert TOKEN not in "".join(path.read_text("utf-8") for path in out.rglob("*.json*"))


def test_what_ft_did_not_write_is_not_uploaded(hub: Hub, trained: Any, tmp_path: Path) -> None:
    """Nor the log, whose lines may quote rows; a file that took another's name is ft's."""
    out = tmp_path / "my run"
    (out / "notes [1]").mkdir(parents=True)
    for name in ("thesis.txt", "notes [1]/a.txt", "adapter_config.json"):
        (out / name).write_text("private")
    trained(overwrite_output_dir=True, save_strategy="no", logging_steps=4)
    (_, names), *others = hub.uploads
    assert not others
    assert (out / "adapter_config.json.before-ft").read_text() == "private"
    assert {"adapter_config.json", "adapter_model.safetensors", "ft_run.json"} <= set(names)
    assert not {"thesis.txt", "notes [1]/a.txt", "adapter_config.json.before-ft", "ft_run.log"} & set(names)


def test_the_name_is_the_folders_unless_it_is_said(hub: Hub, trained: Any, tmp_path: Path) -> None:
    trained(hub_model_id=None, output_dir=str(tmp_path / "second"), save_strategy="no")
    assert [call for name, call in hub.calls if name == "create_repo"] == [
        {"repo_id": "second", "private": None, "exist_ok": True}
    ]


@pytest.mark.parametrize(("always", "expected"), [(False, ["", ""]), (True, ["", "", ""])])
def test_a_checkpoint_waits_for_none(
    always: bool, expected: list[str], hub: Hub, trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.done = False
    original = hub.upload_folder

    def upload_folder(**kwargs: Any) -> Any:
        made = original(**kwargs)
        if "step" not in kwargs["commit_message"] and not kwargs.get("run_as_future"):
            assert all(future.done() for future in hub.futures)
        return made

    hub.upload_folder = upload_folder  # type: ignore[method-assign]
    import threading

    def later() -> None:
        for future in hub.futures:
            if not future.done():
                future.set_result(None)

    from ftcore.training.callbacks.hub_upload import HubUploadCallback

    settle = HubUploadCallback._settle

    def settled(self: HubUploadCallback, *, wait: bool) -> None:
        if wait:
            threading.Timer(0.1, later).start()
        settle(self, wait=wait)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HubUploadCallback, "_settle", settled)
        trained(hub_always_push=always)
    assert [place for place, _ in hub.uploads] == expected
    assert (
        "checkpoint-4 is not uploaded, because the upload of checkpoint-2 is still running" in capsys.readouterr().out
    ) is not always


def test_without_a_network_the_result_is_kept(
    hub: Hub, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.errors = {"create_repo": httpx2.ConnectError("no route to host")}
    with pytest.raises(RunError) as caught:
        trained()
    out = tmp_path / "my run"
    assert str(caught.value) == (
        f"the trained weights in {out} could not be uploaded to adapter: no route to host; "
        f"later run hf upload adapter '{out}' --exclude 'checkpoint-*'"
    )
    assert (out / "adapter_model.safetensors").is_file()
    assert (out / "train_results.json").is_file()
    assert (
        "push_to_hub: no route to host; the run continues, and tries the upload again at its end"
        in capsys.readouterr().out
    )


def test_an_upload_that_fails_on_the_way_is_said(hub: Hub, trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hub.done = False
    original = hub.upload_folder

    def upload_folder(**kwargs: Any) -> Any:
        future = original(**kwargs)
        if future is not None:
            future.set_exception(httpx2.ReadTimeout("timed out"))
        return future

    hub.upload_folder = upload_folder  # type: ignore[method-assign]
    trained()
    text = capsys.readouterr().out
    assert "checkpoint-2 could not be uploaded: timed out; the run continues" in text
    assert "uploaded to me/adapter" in text


def test_a_token_that_may_not_write_ends_the_run_before_its_first_step(hub: Hub, trained: Any, tmp_path: Path) -> None:
    request = httpx2.Request("POST", "https://huggingface.co/api/repos/create")
    error = HfHubHTTPError("403 Forbidden: you don't have the rights", response=httpx2.Response(403, request=request))
    hub.errors = {"create_repo": error}
    with pytest.raises(RunError, match="push_to_hub: the hub refuses adapter: 403 Forbidden"):
        trained()
    assert not (tmp_path / "my run" / "adapter_model.safetensors").exists()


def test_the_plan_wants_a_token_and_a_name(write_config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(hub_checks, "offline", lambda: False)
    with pytest.raises(UsageError) as caught:
        make_plan(write_config(push_to_hub=True, hub_model_id="a/b/c"))
    assert [problem.message for problem in caught.value.problems] == [
        "push_to_hub needs a hub token, and there is none",
        "'a/b/c' is not a valid repository name on the hub",
    ]
    plan = make_plan(write_config(push_to_hub=True, hub_token=TOKEN))
    from ftcore.config.serialization import as_dict

    assert TOKEN not in json.dumps(as_dict(plan), default=str) + repr(plan.hub)
    monkeypatch.setattr(hub_checks, "offline", lambda: True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE forbids the network; unset HF_HUB_OFFLINE"):
        make_plan(write_config(push_to_hub=True, hub_token=TOKEN))
