"""The built-in loaders: what they load, and what they say when they cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcore import testing
from ftcore.api.components import ModelFamily, ModelSource
from ftcore.config.planner import make_plan
from ftcore.errors import UsageError
from ftcore.models import hub_access
from ftcore.testing import tiny_model, tiny_tokenizer


@pytest.fixture
def plan(built_in: Any) -> Callable[..., Any]:
    """``plan(model, "key=value", ...)``."""

    def make(model: Any, *overrides: str, plugins: Any = None) -> Any:
        return make_plan(None, overrides, values={"model_name_or_path": str(model)}, plugins=plugins or built_in)

    return make


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to spoil."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def load_model(plan: Any, **kwargs: Any) -> Any:
    return plan.plugins.hook.ft_load_model(plan=plan, kwargs=kwargs)


def load_tokenizer(plan: Any) -> Any:
    return plan.plugins.hook.ft_load_tokenizer(plan=plan)


def refused(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UsageError) as error:
        call(*arguments)
    return str(error.value)


def test_a_folder(plan: Any, tiny_model_dir: Path) -> None:
    import torch

    model = load_model(plan(tiny_model_dir), dtype=torch.bfloat16)
    assert (type(model).__name__, model.dtype) == ("LlamaForCausalLM", torch.bfloat16)
    assert model.config.name_or_path == str(tiny_model_dir)
    tokenizer = load_tokenizer(plan(tiny_model_dir))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_a_plugins_model_is_fetched_when_it_is_loaded_and_not_before(
    plan: Any, tiny_model_dir: Path, with_plugins: Any, hooks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch() -> Path:
        fetched.append("once")
        return tiny_model_dir

    monkeypatch.setattr(testing, "fetch", fetch, raising=False)
    config = json.loads((tiny_model_dir / "config.json").read_text())

    def family(target: str) -> Any:
        source = ModelSource(name="toy", summary="for a test", config=config, fetch=target, hub_id="acme/toy")
        families = [ModelFamily(name="acme", summary="for a test", models=(source,))]
        return with_plugins(acme=hooks(ft_model_families=lambda: families))

    made = plan("toy", plugins=family("ftcore.testing:fetch"))
    assert fetched == []
    assert load_model(made).config.name_or_path == "acme/toy"
    assert fetched == ["once"]
    message = refused(load_model, plan("toy", plugins=family("ftcore.testing:fech")))
    assert message == (
        "command line: the plugin of model toy names 'ftcore.testing:fech', which cannot be imported: "
        "module 'ftcore.testing' has no attribute 'fech'"
    )


@pytest.mark.parametrize(
    ("special", "padding"),
    [
        (("<|start|>", "<|finetune_right_pad_id|>", "<pad>", "</s>"), "<|finetune_right_pad_id|>"),
        (("<s>", "<|endoftext|>", "</s>"), "<|endoftext|>"),
        (("<s>", "<|endoftext|>"), "<|endoftext|>"),  # its end token: there is no other
        (("<s>", "</s>"), "</s>"),
    ],
)
def test_padding_is_a_token_that_is_there(plan: Any, tmp_path: Path, special: tuple[str, ...], padding: str) -> None:
    tokenizer = tiny_tokenizer(special)
    tokenizer.pad_token = None
    folder = tiny_model(tmp_path / "model", tokenizer=tokenizer)
    loaded = load_tokenizer(plan(folder))
    assert (loaded.pad_token, loaded.eos_token, len(loaded)) == (padding, special[-1], len(tokenizer))


def test_pickled_weights_are_not_read(plan: Any, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert refused(load_model, plan(folder)) == (
        f"command line: {folder} has no safetensors; "
        "pickled weights can run code and are not supported; convert them with save_pretrained"
    )


def test_damaged_weights(plan: Any, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    start = f"command line: the model of {folder} cannot be loaded: "
    assert refused(load_model, plan(folder)).startswith(start)


def test_weights_of_other_sizes(plan: Any, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    start = f"command line: the model of {folder} cannot be loaded: "
    assert refused(load_model, plan(folder)).startswith(start)


def test_missing_weights_are_not_made_up(plan: Any, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert refused(load_model, plan(folder)) == (
        f"command line: {folder} has missing weights: model.layers.2.input_layernorm.weight, "
        "model.layers.2.mlp.down_proj.weight, model.layers.2.mlp.gate_proj.weight and 6 more; download the model again"
    )


def test_a_scoring_head_may_be_new(
    plan: Any, tiny_model_dir: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(plan(tiny_model_dir, "stage=rm"))
    assert "newly initialized" not in caplog.text + "".join(capfd.readouterr())
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert tuple(model.score.weight.shape) == (1, 64)


def test_no_tokenizer(plan: Any, folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    start = f"command line: the tokenizer of {folder} cannot be loaded: "
    assert refused(load_tokenizer, plan(folder)).startswith(start)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            "You are trying to access a gated repo. 401 Client Error",
            "acme/gated is gated; accept its terms on the hub and set HF_TOKEN",
        ),
        (
            "We couldn't connect to 'https://huggingface.co'",
            "the model of acme/gated cannot be fetched; check the name and the network, or write a local folder",
        ),
        (
            "acme/gated does not appear to have a file named model.safetensors",
            "acme/gated has no safetensors; "
            "pickled weights can run code and are not supported; convert them with save_pretrained",
        ),
        (
            "acme/gated contains custom code; pass trust_remote_code=True",
            "acme/gated requires custom code; review the code, then set trust_remote_code: true",
        ),
    ],
)
def test_the_hub_says_no(plan: Any, monkeypatch: pytest.MonkeyPatch, raised: str, message: str) -> None:
    from transformers import AutoModelForCausalLM

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(raised)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    monkeypatch.setattr(hub_access, "contact", lambda name: None)  # it answers
    assert refused(load_model, plan("acme/gated")) == f"command line: {message}"


def test_what_the_hub_is_asked_for(plan: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    asked: dict[str, Any] = {}

    def ask(name: str, **kwargs: Any) -> Any:
        asked.update(kwargs, name=name)
        return tiny_tokenizer()

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", ask)
    monkeypatch.setattr(hub_access, "contact", lambda name: None)  # it answers
    options = ("model_revision=v2", f"cache_dir={tmp_path}", "hf_hub_token=secret", "trust_remote_code=true")
    load_tokenizer(plan("acme/model", *options))
    assert asked == {
        "name": "acme/model",
        "revision": "v2",
        "cache_dir": str(tmp_path),
        "token": "secret",
        "trust_remote_code": True,
    }
