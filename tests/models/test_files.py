"""The files of models: found where they lie, and told apart by content."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from ftcore.config.planner import make_plan
from ftcore.models.files import base_files, model_files, weights_of


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def plan_of(model: str, **more: Any) -> Any:
    return make_plan(None, values={"model_name_or_path": model, "do_train": False} | more)


def test_base_and_adapters(config_dir: Path, tmp_path: Path) -> None:
    """Weights and what says how they are used; neither tokenizer nor what lies in folders beneath."""
    (config_dir / "model.safetensors").write_bytes(bytes(4 * 127_552))  # as much as config.json describes
    (config_dir / "tokenizer.json").write_text("{}")
    (config_dir / "checkpoint-1").mkdir()
    (config_dir / "checkpoint-1/model.safetensors").write_bytes(b"others")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"change")
    plan = plan_of(str(config_dir), adapter_name_or_path=str(adapter))
    base = {name: digest(config_dir / name) for name in ("config.json", "model.safetensors")}
    assert base_files(plan) == base
    own = {f"{adapter}/{name}": digest(adapter / name) for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert model_files(plan) == base | own
    assert weights_of(base) == {base["model.safetensors"]}


def test_a_model_in_the_hubs_cache(config_dir: Path, tmp_path: Path) -> None:
    """By the snapshot that its revision means; nothing where it was never fetched."""
    cache = tmp_path / "cache"
    snapshot = cache / "models--acme--bird" / "snapshots" / "abc"
    shutil.copytree(config_dir, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("abc")
    found = base_files(plan_of("acme/bird", cache_dir=str(cache)))
    assert found == {"config.json": digest(config_dir / "config.json")}
    assert base_files(plan_of("acme/fish", cache_dir=str(cache))) == {}
