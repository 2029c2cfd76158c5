"""What a plan cannot know, and the memory of plans that do not train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ftcore.api.registry import Plugins
from ftcore.cli.plan import command
from ftcore.config.planner import make_plan

FAR = "acme/far-7b"
UNKNOWN_CONFIG = "is not in the hub's cache, so its config.json is unknown"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def cached(home: Path, name: str, file: str, content: object) -> None:
    folder = home / "hf" / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / file).write_text(json.dumps(content))


def test_a_model_that_is_not_here(write_config: Callable[..., Path], built_in: Plugins) -> None:
    """Nothing is said to be ignored that the model may read, and no memory is made up."""
    file = write_config("image_max_pixels: 1000\n", model_name_or_path=FAR, template=...)
    plan = make_plan(file, plugins=built_in)
    assert plan.unknown == (
        f"{FAR} {UNKNOWN_CONFIG}; ft run determines model family, chat template, settings for images and memory",
    )
    assert plan.ignored == ()
    assert plan.memory is None
    assert plan.media.image_max_pixels == 1000
    file = write_config(model_name_or_path=FAR, template="chatml")
    assert make_plan(file, plugins=built_in).unknown == (
        f"{FAR} {UNKNOWN_CONFIG}; ft run determines model family, settings for images and memory",
    )
    shown = CliRunner().invoke(command, [str(file), "template=null"]).output
    assert "chat template     not known before the model is downloaded\n" in shown
    assert f"not known: {FAR} {UNKNOWN_CONFIG}" in shown
    assert [line.partition(":")[0] for line in shown.splitlines()[-3:]] == [
        "precision",
        "effective batch size",
        "not known",
    ]
    told = json.loads(CliRunner().invoke(command, [str(file), "--json"]).output)
    assert told["memory"] is None
    assert len(told["unknown"]) == 1


def test_a_model_that_is_here(
    tmp_path: Path, config_dir: Path, write_config: Callable[..., Path], built_in: Plugins
) -> None:
    cached(tmp_path, FAR, "config.json", json.loads((config_dir / "config.json").read_text()))
    plan = make_plan(write_config("image_max_pixels: 1000\n", model_name_or_path=FAR), plugins=built_in)
    assert plan.unknown == ()
    assert plan.memory is not None
    assert [line.partition(": ")[2] for line in plan.ignored] == [
        "ignored: image_max_pixels is an option of media, not used here"
    ]
    cached(tmp_path, "acme/odd", "config.json", {"model_type": "odd"})
    plan = make_plan(write_config(model_name_or_path="acme/odd"), plugins=built_in)
    assert plan.unknown == ("memory is not estimated: the architecture of model_type 'odd' is unknown",)


def test_what_lies_beside_the_model(tmp_path: Path, write_config: Callable[..., Path], built_in: Plugins) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"far": {"hf_hub_url": "acme/rows"}}))
    values = {"dataset": "far", "dataset_dir": str(tmp_path), "adapter_name_or_path": "acme/one,acme/two"}
    cached(tmp_path, "acme/two", "adapter_config.json", {})
    file = write_config("ref_model: acme/ref\nref_model_adapters: acme/three\n", stage="dpo", **values)
    assert make_plan(file, plugins=built_in).unknown == (
        "adapter_name_or_path: adapter acme/one is not in the hub's cache and was not checked",
        "ref_model: acme/ref is not in the hub's cache and was not checked",
        "ref_model: adapter acme/three is not in the hub's cache and was not checked",
        "dataset far is on the hub; whether it exists was not checked",
    )
    file = write_config("reward_model: acme/judge\nreward_model_type: full\n", stage="ppo")
    assert make_plan(file, plugins=built_in).unknown == (
        "reward_model: acme/judge is not in the hub's cache and was not checked",
    )


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"do_eval": True}, "evaluating 3 rows of 512 tokens"),
        (
            {"do_predict": True, "predict_with_generate": True},
            "generating at most 64 tokens for 3 prompts of 512 tokens",
        ),
        ({}, "generating at most 64 tokens for 3 prompts of 512 tokens"),
    ],
)
def test_memory_without_training(
    values: dict[str, bool], note: str, write_config: Callable[..., Path], rows_file: Path, built_in: Plugins
) -> None:
    more = {"per_device_eval_batch_size": 3, "cutoff_len": 512, "max_new_tokens": 64, "dataset": ...}
    more |= {"eval_dataset": str(rows_file)} if values else {}
    plan = make_plan(write_config(do_train=False, **more, **values), plugins=built_in)
    assert plan.memory is not None
    assert plan.memory.note == note
    terms = plan.memory.terms
    assert not {"gradients", "optimizer state", "trained parameters"} & set(terms)
    assert plan.memory.total == sum(terms.values())
    config = plan.config
    assert config is not None
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    width = heads * (config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    answered = 3 * (512 + 64) * config["num_hidden_layers"] * 2 * width * 4
    assert terms.get("keys and values", 0) == (answered if "generating" in note else 0)
    trains = make_plan(write_config(**more | {"dataset": str(rows_file)}), plugins=built_in).memory
    assert trains is not None
    assert trains.total > plan.memory.total
    assert not plan.gradient_checkpointing
