"""What was found out about a way through a model is kept for the same model, code and settings, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ft_plugins.backends.cpu.runtime import CpuRuntime
from ftcore.training.attention import varlen
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.model_transforms import capability_cache
from ftcore.utils import hashing
from ftcore.utils.content_store import store_root


class Asked(CausalLMForward):
    """Counts its questions."""

    times = 0

    def probe_capabilities(self) -> None:
        Asked.times += 1
        super().probe_capabilities()


@pytest.fixture
def asks(small_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """``asks(change)``: whether a fresh model, changed so, is asked; an unchanged one has been before."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path))

    def made(change: Callable[[Any], Any] = lambda model: None, family: str = "llama") -> bool:
        torch.manual_seed(0)
        model = small_models[family].make()
        change(model)
        before, scorer = Asked.times, Asked(model, CpuRuntime())
        capability_cache.probe_capabilities(scorer)
        assert (scorer.packed, scorer.fused, scorer.shares) == (True, True, True)
        assert model.config._attn_implementation == varlen.NAME
        return Asked.times > before

    assert made()
    return made


def _kept() -> Path:
    (file,) = (store_root() / "capability-probes").glob("*/manifest.json")
    return file


def test_the_same_model_is_not_asked_again(asks: Any) -> None:
    """And what it computes is what it computed when it was asked: see `asks`."""
    assert not asks()
    assert not asks()


def _train(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight += 1e-3


def _freeze(model: Any) -> None:
    model.model.embed_tokens.weight.requires_grad_(False)


def _replace(model: Any) -> None:
    own = model.model.layers[0].mlp
    own.forward = own.forward


def _reclass(model: Any) -> None:
    kind = type(model.model.layers[0].mlp)
    model.model.layers[0].mlp.__class__ = type("Mine", (kind,), {})


CHANGES: dict[str, Callable[[Any], Any]] = {
    "configuration": lambda model: setattr(model.config, "rms_norm_eps", 1e-3),
    "attention": lambda model: model.set_attn_implementation("eager"),
    "weights": _train,
    "what is trained": _freeze,
    "dtype": lambda model: model.to(torch.float64),
    "class": _reclass,
    "mode": lambda model: model.eval() if model.training else model.train(),
    "replaced forward": _replace,
    "hook": lambda model: model.model.layers[0].register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_model_is_asked(what: str, asks: Any) -> None:
    assert asks(CHANGES[what])


def test_another_family_is_asked(asks: Any) -> None:
    assert asks(family="mistral")


@pytest.mark.parametrize("package", ["torch", "transformers", "peft", "ftcore"])
def test_another_version_asks(package: str, asks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability_cache, "versions", lambda: {package: "99"})
    assert asks()


def test_changed_sources_ask(asks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own, which may be edited in place."""
    own = hashing._source
    edited = "modeling_llama.py"
    monkeypatch.setattr(hashing, "_source", lambda file, whole: "edited" if file.endswith(edited) else own(file, whole))
    assert asks()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"content": {"value": {}}, "seal": ""}'])
def test_a_broken_file_asks_and_is_mended(content: str, asks: Any) -> None:
    good = json.loads(_kept().read_text())
    _kept().write_text(content)
    assert asks()
    assert json.loads(_kept().read_text()) == good
    assert not asks()


def test_less_than_everything_is_not_kept(
    small_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its warning comes with each run."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path))
    monkeypatch.setattr(CausalLMForward, "_can_pack", lambda scorer: False)
    for turn in (1, 2):
        scorer = CausalLMForward(small_models["llama"].make())
        capability_cache.probe_capabilities(scorer)
        assert not scorer.packed
        assert caplog.text.count("batches are padded") == turn
    assert not (tmp_path / "v2" / "capability-probes").exists()


def test_what_is_kept_says_no_more_than_the_way(asks: Any) -> None:
    way = json.loads(_kept().read_text())["content"]["value"]
    assert way == {"packed": True, "shares": True, "splits_rows": True, "fused": True}


def test_tensors_without_numbers_have_no_name(small_models: Any) -> None:
    assert capability_cache.key(CausalLMForward(small_models["llama"].make().to("meta"))) is None
