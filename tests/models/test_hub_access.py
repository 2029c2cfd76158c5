"""The first contact with the hub: one request, and one line for whatever cannot be downloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ftcore.api.registry import Plugins
from ftcore.config.planner import make_plan
from ftcore.errors import UsageError
from ftcore.models import hub_access
from ftcore.models.hub_access import HubName

COMMIT = "0" * 40
FOLDER = "a local folder works too"


class Hub:
    """A hub on 127.0.0.1 that has one model, and refuses others in every way that the real one does."""

    refusals = {  # noqa: RUF012
        "gated": (403, "GatedRepo"),
        "unknown": (401, "RepoNotFound"),
        "gone": (404, "RepoNotFound"),
        "branch": (404, "RevisionNotFound"),
        "empty": (404, "EntryNotFound"),
        "private": (403, ""),
        "busy": (503, ""),
        "teapot": (418, ""),
    }

    def __init__(self, model: Path) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, model, body=False)

            def do_GET(self) -> None:
                hub.answer(self, model, body=True)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def requests(self) -> dict[str, int]:
        """How often each file was asked for; the client's questions about itself left out."""
        return dict(sorted(Counter(line for line in self.asked if "/resolve/" in line).items()))

    def answer(self, request: BaseHTTPRequestHandler, model: Path, *, body: bool) -> None:
        """Files of ``acme/tiny``; else what the name says."""
        self.asked.append(f"{request.command} {request.path}")
        name, _, file = request.path.removeprefix("/datasets").removeprefix("/").partition("/resolve/main/")
        repo = name.split("/")[1] if "/" in name else ""
        if repo == "hanging":
            time.sleep(30)
        status, code = self.refusals.get(repo, (404, "EntryNotFound"))
        if repo == "tiny" and (model / file).is_file():
            content = (model / file).read_bytes()
            request.send_response(200)
            request.send_header("ETag", f'"{file}"')
            request.send_header("X-Repo-Commit", COMMIT)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content if body else b"")
            return
        request.send_response(status)
        if code:
            request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    made = Hub(folder)
    yield made
    made.server.shutdown()
    made.server.server_close()


def run(script: list[str], home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    cleaned = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_OFFLINE"))
    }
    env = cleaned | {"HF_HOME": str(home)} | more
    return subprocess.run([sys.executable, *script], env=env, capture_output=True, text=True, check=False)


ASK = """
import json, sys
from ftcore.models import hub_access as hub
said, connections = {}, []
sys.addaudithook(lambda event, arguments: event == "socket.connect" and connections.append(arguments[1]))
for what in ("model", "adapter", "dataset"):
    for name in sys.argv[1:]:
        if "hanging" in name and what != "model":
            continue
        hub.SECONDS = 2.0 if "hanging" in name else 60.0
        problem = hub.HubName(name=name, what=what, revision="main" if what == "model" else None).problem("run.yaml:1")
        said[f"{what} {name}"] = problem and str(problem)
print(json.dumps([said, len(connections)]))
"""


@pytest.mark.slow
def test_every_refusal_is_one_request_and_one_line(served: Hub, tmp_path: Path) -> None:
    names = [f"acme/{name}" for name in (*Hub.refusals, "hanging", "tiny")]
    served.asked.clear()
    done = run(["-c", ASK, *names], tmp_path, HF_ENDPOINT=served.url)
    assert done.returncode == 0, done.stderr
    said, _ = json.loads(done.stdout)
    token = "accept its terms on the hub, and set HF_TOKEN to a token with read access"
    expected = {
        "gated": "is gated; accept its terms on the hub and set HF_TOKEN",
        "unknown": "is not on the hub, or private; check the name; for a private repository set HF_TOKEN",
        "gone": "is not on the hub, or private; check the name; for a private repository set HF_TOKEN",
        "private": f"is private or gated; {token}",
        "teapot": f"cannot be downloaded: {served.url} answers with status 418; check the name; {FOLDER}",
    }
    hanging = said.pop("model acme/hanging")
    assert hanging.startswith(f"run.yaml:1: model acme/hanging cannot be downloaded: {served.url} ")
    assert "does not answer within 2 s" in hanging or "timed out" in hanging
    for what in ("model", "adapter", "dataset"):
        for name in ("tiny", "empty", "busy"):  # it is there; the client waits and asks again
            assert said.pop(f"{what} acme/{name}") is None
        branch = said.pop(f"{what} acme/branch")
        assert "has no revision" in branch
        for name, line in expected.items():
            assert said.pop(f"{what} acme/{name}") == f"run.yaml:1: {what} acme/{name} {line}"
    assert not said
    assert set(served.requests.values()) == {1}


@pytest.mark.slow
def test_without_a_network_and_offline(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"
    done = run(["-c", ASK, "acme/x"], tmp_path, HF_ENDPOINT=closed)
    said, connections = json.loads(done.stdout)
    assert said["model acme/x"].startswith(
        f"run.yaml:1: model acme/x cannot be downloaded: {closed} cannot be reached ("
    )
    assert said["dataset acme/x"].startswith("run.yaml:1: dataset acme/x cannot be downloaded")
    assert connections <= 4, "each name once, and what the client asks about itself"
    offline = run(["-c", ASK, "acme/x"], tmp_path, HF_HUB_OFFLINE="1")
    said, _ = json.loads(offline.stdout)
    assert said["adapter acme/x"] == (
        "run.yaml:1: adapter acme/x is not in the cache, and HF_HUB_OFFLINE is set; "
        f"unset HF_HUB_OFFLINE, or download it before; {FOLDER}"
    )


CONFIG = """
import sys
from ftcore.models import hub_access as hub
from ftcore.config.planner import make_plan
plan = hub.planned(lambda: make_plan(sys.argv[1]))
print(plan.family.component.name, plan.config, hub.model_name(plan).problem(), hub.model_name(plan).local_only())
"""


@pytest.mark.slow
def test_the_config_is_fetched_before_the_plan_and_used_without_the_hub(
    served: Hub, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    file = str(write_config(model_name_or_path="acme/tiny"))
    done = run(["-c", CONFIG, file], tmp_path, HF_ENDPOINT=served.url)
    assert done.stdout.split(" ", 1)[1] == "{'model_type': 'llama'} None False\n", done.stderr
    later = run(["-c", CONFIG, file], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert later.stdout == done.stdout.replace("False", "True"), later.stderr
    assert "model acme/tiny is read from the cache" in later.stderr
    offline = run(["-c", CONFIG, file], tmp_path, HF_HUB_OFFLINE="1")
    assert offline.stdout == later.stdout
    assert not offline.stderr


@pytest.mark.slow
def test_a_run_names_everything_at_once_before_anything_heavy_loads(
    served: Hub, tmp_path: Path, write_config: Callable[..., Path], rows_file: Path
) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"far": {"hf_hub_url": "acme/gone"}}))
    values = {
        "stage": "dpo",
        "ref_model": "acme/unknown",
        "ref_model_adapters": "acme/gone",
        "dataset_dir": str(tmp_path),
    }
    file = write_config(dataset="far", adapter_name_or_path="acme/gated", model_name_or_path="smollm2-135m", **values)
    served.asked.clear()
    script = (
        "import sys\nfrom ftcore.cli import main\ntry:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    done = run(["-c", script, "run", str(file)], tmp_path, HF_ENDPOINT=served.url)
    assert done.returncode == 2, done.stderr
    lines = [line.partition("run.yaml:")[2].partition(": ")[2].partition(";")[0] for line in done.stderr.splitlines()]
    assert sorted(lines) == [
        "adapter acme/gated is gated",
        "adapter acme/gone is not on the hub, or private",
        "dataset acme/gone is not on the hub, or private",
        "model acme/unknown is not on the hub, or private",
    ]
    assert served.requests == {
        "HEAD /acme/gated/resolve/main/adapter_config.json": 1,
        "HEAD /acme/gone/resolve/main/adapter_config.json": 1,
        "HEAD /acme/unknown/resolve/main/config.json": 1,
        "HEAD /datasets/acme/gone/resolve/main/README.md": 1,
    }


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_access, "contact", lambda name: ("is far", "go there"))
    monkeypatch.setattr(HubName, "cached", lambda self: False)


def test_whatever_loads_from_the_hub_asks_first(
    monkeypatch: pytest.MonkeyPatch, write_config: Callable[..., Path], built_in: Plugins
) -> None:
    """Tokenizer, model, processor, adapter, dataset; and models beside the trained one at their option."""
    from ft_plugins.engines.transformers.loading import load_adapted
    from ft_plugins.stages.ppo.reward_models import reward_plan
    from ft_plugins.stages.references import reference_plan
    from ftcore.api.dataset_spec import DatasetSpec
    from ftcore.data.sources.readers import read_dataset
    from ftcore.models.adapters import adapter_folder

    refuse(monkeypatch)

    def said(call: Callable[[], Any]) -> str:
        with pytest.raises(UsageError) as error:
            call()
        return str(error.value).rpartition("/")[2] if "run.yaml" in str(error.value) else str(error.value)

    plan = make_plan(write_config(model_name_or_path="acme/m"), plugins=built_in)
    hook = plan.plugins.hook
    assert said(lambda: hook.ft_load_tokenizer(plan=plan)) == "m is far; go there"
    assert said(lambda: hook.ft_load_model(plan=plan, kwargs={})) == "m is far; go there"
    with pytest.raises(UsageError, match=r"run\.yaml:1: adapter_name_or_path: adapter acme/a is far; go there|acme/a"):
        adapter_folder(plan, "acme/a")
    spec = DatasetSpec(name="d", path=None, hub_id="acme/d", where="run.yaml:3")
    with pytest.raises(UsageError, match=r"^run\.yaml:3: dataset acme/d is far; go there$"):
        next(read_dataset(spec))
    file = write_config("ref_model: acme/r\n", stage="dpo")
    plan = make_plan(file, plugins=built_in)
    with pytest.raises(UsageError, match=r"run\.yaml:7: model acme/r is far; go there$"):
        load_adapted(reference_plan(plan))
    file = write_config("reward_model: acme/w\nreward_model_type: full\n", stage="ppo")
    plan = make_plan(file, plugins=built_in)
    with pytest.raises(UsageError, match=r"run\.yaml:\d: model acme/w is far; go there$"):
        load_adapted(reward_plan(plan))
