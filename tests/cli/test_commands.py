"""plugins, options, plan, env: what they print."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcore.api.components import KINDS
from ftcore.cli import main

FTCORE = importlib.metadata.version("ftcore")
GROUP_OWNERS = {
    "selection",
    "model",
    "data",
    "training",
    "generation",
    "media",
    "videos",
    "export",
    "serving",
    "transformers",
}


@pytest.fixture
def ft(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``ft("plan", file)``: what it prints on standard output; it must end with ``status``."""

    def run(*words: Any, status: int = 0) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert (end.value.code or 0) == status
        return capsys.readouterr().out

    return run


def test_plugins_list_as_json(ft) -> None:
    rows = json.loads(ft("plugins", "list", "--json"))
    assert all(
        {"kind", "name", "full_name", "distribution", "version", "status", "summary"} <= row.keys() for row in rows
    )
    own = {(row["kind"], row["name"]) for row in rows if row["distribution"] == "ftcore"}
    wanted = {
        ("dataset_format", "instruction"), ("dataset_format", "messages"), ("chat_template", "chatml"),
        ("chat_template", "llama3"), ("chat_template", "qwen"), ("chat_template", "chatglm"), ("method", "lora"),
        ("method", "full"), ("stage", "sft"), ("optimizer", "adamw"), ("launcher", "local"),
        ("inference_engine", "huggingface"), ("model_family", "llama3"), ("plugin", "llamafactory_options"),
        ("backend", "cpu"), ("backend", "cuda"), ("backend", "reference"),
    }  # fmt: skip
    assert wanted <= own
    assert {row["full_name"] for row in rows if row["name"] == "adamw"} == {"ftcore:adamw"}


@pytest.mark.parametrize("kind", [kind.kind for kind in KINDS])
def test_plugins_list_of_one_kind(ft, kind: str) -> None:
    assert {row["kind"] for row in json.loads(ft("plugins", "list", "--kind", kind, "--json"))} == {kind}


def test_plugins_list_for_people(ft) -> None:
    lines = ft("plugins", "list", "--kind", "launcher").splitlines()
    assert lines == ["", "launcher", f"  local              in this process, on one device (ftcore {FTCORE})"]


def test_plugins_show(ft) -> None:
    (shown,) = json.loads(ft("plugins", "show", "ftcore:lora", "--json"))
    assert (shown["kind"], shown["selected_by"], shown["plugin"]) == ("method", "finetuning_type", "ftcore/methods")
    rank = next(option for option in shown["options"] if option["name"] == "lora_rank")
    assert (rank["type"], rank["default"]) == ("int", 8)
    assert "lora_rank: int = 8" in ft("plugins", "show", "lora")


def test_plugins_show_of_nothing(ft, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plugins", "show", "loara"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no component or plugin 'loara'; did you mean lora")


def test_options(ft) -> None:
    options = json.loads(ft("options", "--json"))
    owners = {option["owner"] for option in options}
    assert owners > GROUP_OWNERS
    assert "method lora" in owners
    names = [option["name"] for option in options]
    assert {"stage", "template", "learning_rate", "lora_rank", "logging_first_step", "temperature"} <= set(names)
    assert {option["name"] for option in json.loads(ft("options", "lora_rank", "--json"))} == {"lora_rank"}
    assert {option["owner"] for option in json.loads(ft("options", "lora", "--json"))} == {"method lora"}
    assert {option["owner"] for option in json.loads(ft("options", "data", "--json"))} == {"data"}
    assert "lora_rank: int = 8" in ft("options", "method")


def test_options_schema(ft) -> None:
    schema = json.loads(ft("options", "--schema"))
    assert schema["required"] == ["model_name_or_path"]
    assert {"stage", "lora_rank", "cutoff_len", "logging_first_step"} <= schema["properties"].keys()
    assert {"type": "null"} in schema["properties"]["cutoff_len"]["anyOf"]
    assert all("description" in details for details in schema["properties"].values())


def test_plan_as_json(ft, write_config: Callable[..., Path]) -> None:
    file = write_config("lora_rank: 4\nimage_max_pixels: 9\n")
    plan = json.loads(ft("plan", file, "seed=3", "--json"))
    assert plan["components"]["method"] == "ftcore:lora"
    assert plan["components"]["chat_template"] == "ftcore:chatml"
    options = plan["options"]
    assert options["lora_rank"] == {"value": 4, "owner": "method lora", "origin": f"{file}:6"}
    assert options["seed"] == {"value": 3, "owner": "training", "origin": "command line"}
    assert options["cutoff_len"] == {"value": 2048, "owner": "data", "origin": "default"}
    assert plan["ignored"] == [f"{file}:7: ignored: image_max_pixels is an option of media, not used here"]
    assert plan["warnings"] == []
    assert plan["memory"]["largest"] in plan["memory"]["terms"]
    assert plan["memory"]["total"] > 0


def test_dry_run_prints_the_plan_and_writes_nothing(ft, write_config: Callable[..., Path], tmp_path: Path) -> None:
    file = write_config("hf_hub_token: canary\n")
    printed = ft("run", "--dry-run", file)
    assert printed == ft("plan", file)
    assert "method            ftcore:lora" in printed
    assert "canary" not in printed
    assert "canary" not in ft("plan", file, "--json", "--all")
    assert not (tmp_path / "out").exists()


def test_env(ft) -> None:
    facts = json.loads(ft("env", "--json"))
    assert facts["packages"]["ftcore"] == FTCORE
    assert facts["plugins"]["ftcore/stages"] == f"{FTCORE} ok"
    assert "memory_gib: " in ft("env")
