"""Fixtures that many tests share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from ftcore.api.registry import Candidate, Plugins, installed, load

# Tiny models gain nothing by threads, and threads that wait for each other on a busy machine made the same run 20 times
# slower (165 s against 7 s, load 5 on two cores).
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Numbers are those of float32, also on a processor that has bfloat16, where `bf16: auto` would take it.
os.environ["FT_CPU_BF16"] = "0"


EXAMPLES = int(os.environ.get("FT_FUZZ") or (100 if os.environ.get("CI") else 20))
"""Of each property: few here, more in CI, and as many as ``FT_FUZZ`` says."""
# a busy machine makes examples slow, and a fixture of a function serves all examples of a test that changes nothing
settings.register_profile(
    "ft",
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ft")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens that tests keep are the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def torchs_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product by oneDNN, which torch's FLOP counter does not know."""
    from ft_plugins.backends.cpu import matmul

    monkeypatch.setattr(matmul, "SMALL", 1 << 62)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[subprocess.CompletedProcess[str]]]]:
    """``warm((script, words, environment), ...)``: these at once, in forks of a process that has imported everything.

    A script of None is ``ft``.
    """
    file, folder, numbers = Path(__file__).with_name("warm_process.py"), tmp_path_factory.mktemp("warm"), count()
    server = subprocess.Popen(
        [sys.executable, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert server.stdin
    assert server.stdout

    def run(*processes: tuple[Path | None, Sequence[str], Mapping[str, str]]) -> list[subprocess.CompletedProcess[str]]:
        asked = []
        for script, words, environment in processes:
            output, errors = (str(folder / f"{next(numbers)}.txt") for _ in range(2))
            asked.append({"script": script and str(script), "words": list(words), "environment": dict(environment)})
            asked[-1] |= {"output": output, "errors": errors}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        statuses = json.loads(server.stdout.readline())
        return [
            subprocess.CompletedProcess(
                one["words"], status, Path(one["output"]).read_text(), Path(one["errors"]).read_text()
            )
            for one, status in zip(asked, statuses, strict=True)
        ]

    yield run
    os.killpg(server.pid, signal.SIGKILL)
    server.communicate()


@pytest.fixture(scope="session")
def built_in() -> Plugins:
    """Our own plugins, whatever else is installed."""
    return load([candidate for candidate in installed() if candidate.distribution == "ftcore"], disabled=())


@pytest.fixture
def with_plugins() -> Callable[..., Plugins]:
    """``with_plugins(acme=plugin_object, ...)``: the built-ins and these, each in a distribution of its own."""

    def make(*, disabled: Iterable[str] = (), **plugins: Any) -> Plugins:
        own = [candidate for candidate in installed() if candidate.distribution == "ftcore"]

        def loader(plugin: Any) -> Callable[[], Any]:
            def run() -> Any:
                if isinstance(plugin, BaseException):
                    raise plugin
                return plugin

            return run

        more = [Candidate(name, "1.0", "plugin", loader(plugin)) for name, plugin in plugins.items()]
        return load([*own, *more], disabled=disabled)

    return make


@pytest.fixture
def hooks() -> Callable[..., Any]:
    """``hooks(ft_stages=function)``: a plugin object with these hooks."""
    from ftcore import hookimpl

    def make(**functions: Callable[..., Any]) -> Any:
        return type("Plugin", (), {name: staticmethod(hookimpl(function)) for name, function in functions.items()})()

    return make


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    """A folder that looks like a small Llama to a plan: config.json, no weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 418,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """Three instruction rows."""
    file = tmp_path / "rows.json"
    rows = [{"instruction": f"question {number}", "output": f"answer {number}"} for number in range(3)]
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture
def write_config(tmp_path: Path, config_dir: Path, rows_file: Path) -> Callable[..., Path]:
    """``write_config(text, **values)``: a YAML file that plans, with these lines and values on top."""

    def write(text: str = "", **values: Any) -> Path:
        base = {"model_name_or_path": str(config_dir), "do_train": True, "dataset": str(rows_file)}
        base |= {"template": "chatml", "output_dir": str(tmp_path / "out")} | values
        file = tmp_path / "run.yaml"
        lines = [f"{name}: {json.dumps(value)}" for name, value in base.items() if value is not ...]
        file.write_text("\n".join(lines) + "\n" + text)
        return file

    return write


@pytest.fixture(scope="session")
def reward_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random sequence-classification model of one label."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from ftcore.testing import tiny_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("reward"), tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
        LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Tests compute on one thread; nothing goes side by side there."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
