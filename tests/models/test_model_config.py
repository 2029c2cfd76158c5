"""Model folders of strangers: whatever they say is told in one line, before anything is built by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftcore.config.planner import make_plan
from ftcore.errors import UsageError
from ftcore.models.model_config import BOUNDS, READ_TOO, config_problems, index_problems
from ftcore.resources.model_shapes import LAYOUTS, Architecture
from ftcore.utils.json_files import DEEPEST, read_object, too_deep

HOSTILE = (0, -1, 1e9, 10**9, 10**30, "32", "", [], {}, True, float("nan"), float("inf"), 0.5)
DEEP = "[" * 100_000 + "]" * 100_000


def sizes(model_type: str) -> dict[str, Any]:
    layout = LAYOUTS[model_type]
    found: dict[str, Any] = {"model_type": model_type, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 418}
    found |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    for name in layout.experts:
        found |= {name: 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1, layout.expert_size: 32}
    return found


def told(model: Path, command: str = "") -> list[str]:
    """What a plan over a model says is wrong."""
    try:
        make_plan(None, values={"model_name_or_path": str(model), "do_train": False, "template": "chatml"})
    except UsageError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_every_number_that_an_architecture_reads(model_type: str) -> None:
    right = sizes(model_type)
    assert list(config_problems(right, Path("config.json"), "run.yaml:1")) == []
    assert Architecture.from_config(right) is not None
    for name in [name for name in right if name != "model_type"]:
        for value in HOSTILE:
            if value == 0 and not isinstance(value, bool) and BOUNDS[name][0] == 0:
                continue
            (found,) = config_problems(right | {name: value}, Path("config.json"), "run.yaml:1")
            shown = repr(value) if len(repr(value)) <= 60 else ""
            assert str(found).startswith(f"run.yaml:1: config.json: {name} is {shown}"), found
            assert "\n" not in str(found)


@pytest.mark.parametrize("name", sorted(BOUNDS))
@pytest.mark.parametrize("value", [0, -1, 1e9, 10**30, "32", True, None, float("nan")])
def test_whatever_is_accepted_can_be_counted(name: str, value: Any) -> None:
    """The rest of the code may divide: nothing that passes makes it fail."""
    for model_type in LAYOUTS:
        config = sizes(model_type) | {name: value}
        if not list(config_problems(config, Path("config.json"), "")) and (found := Architecture.from_config(config)):
            assert found.layer_parameters > 0
            assert found.parameters > 0


def test_other_types_may_have_lists_and_nulls() -> None:
    """OpenELM has heads for each layer, Gemma 3n sizes; the text half of a model that sees is looked at too."""
    config = {"model_type": "openelm", "num_attention_heads": [4, 8], "head_dim": None, "intermediate_size": [1, 2]}
    assert list(config_problems(config, Path("c"), "")) == []
    config = {"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**9}, "vision_config": {"head_dim": 0}}
    (problem,) = config_problems(config, Path("c"), "")
    assert str(problem) == "c: text_config.num_hidden_layers is 1000000000, expected a whole number from 1 to 10000"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads is 4, not a multiple of num_key_value_heads, 3"),
        ({"num_attention_heads": 128}, "num_attention_heads is 128, more than hidden_size, 64"),
        ({"model_type": ["llama"]}, "model_type is ['llama'], expected str"),
        ({"architectures": 5}, "architectures is 5, expected list"),
        ({"quantization_config": "bnb"}, "quantization_config is 'bnb', expected dict"),
        ({"text_config": []}, "text_config is [], expected dict"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', expected bool"),
    ],
)
def test_other_fields(config_dir: Path, change: dict[str, Any], reason: str) -> None:
    file = config_dir / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert told(config_dir) == [f"command line: {file}: {reason}"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "nests more than 100 levels deep"),
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, "nests more than 100 levels deep"),
        ('{"a": ' * 500 + "1" + "}" * 500, "nests more than 100 levels deep"),
        ("[]", "holds list, not an object"),
        ("3", "holds int, not an object"),
        ("{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("", "is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
    ids=["lists", "objects", "500", "list", "number", "broken", "empty"],
)
@pytest.mark.parametrize("name", ["config.json", *READ_TOO, "model.safetensors.index.json"])
def test_files_that_cannot_be_read(config_dir: Path, name: str, text: str, reason: str) -> None:
    (config_dir / name).write_text(text)
    (found,) = told(config_dir)
    assert found.removesuffix("; download the model again") == f"command line: {config_dir / name} {reason}"


@pytest.mark.parametrize(
    ("name", "outside"),
    [
        ("../model.safetensors", True),
        ("a/../../model.safetensors", True),
        ("/etc/model.safetensors", True),
        ("..\\model.safetensors", True),
        ("C:\\model.safetensors", True),
        ("C:model.safetensors", True),
        ("\\\\host\\model.safetensors", True),
        ("", True),
        ("a\0b", True),
        (5, False),
        ("model-00001-of-00002.safetensors", False),
        ("shards/model..safetensors", False),
    ],
)
def test_a_weight_index_names_files_of_its_own_folder(config_dir: Path, name: Any, outside: bool) -> None:
    file = config_dir / "model.safetensors.index.json"
    file.write_text(json.dumps({"metadata": {}, "weight_map": {"a": name, "b": "model-2.safetensors", "c": name}}))
    hint = "a weight index may only name files of its own folder; do not trust this model"
    reason = f"command line: {file} names {name!r}, which lies outside of its folder; {hint}"
    assert told(config_dir) == ([reason] if outside else [])


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_a_weight_index_without_a_map(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": value}))
    assert [problem.message for problem in index_problems(file, "")] == [f"{file} has no weight_map"]


def test_a_config_of_another_models_weights(config_dir: Path) -> None:
    """transformers would make up what is missing: 10,000 layers of random numbers."""
    (config_dir / "model.safetensors").write_bytes(b"0" * 200_000)
    assert told(config_dir) == []
    file = config_dir / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 10_000}))
    (found,) = told(config_dir)
    assert "describes 369,973,568 parameters, but its weight files have 200,000 bytes" in found


def test_an_adapter_that_cannot_be_read(config_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(DEEP)
    values = {"model_name_or_path": str(config_dir), "adapter_name_or_path": str(folder), "do_train": False}
    with pytest.raises(UsageError, match="nests more than 100 levels deep"):
        make_plan(None, values=values)


def test_a_model_in_the_hubs_cache_is_looked_at_too(
    config_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    snapshot = cache / "models--acme--m/snapshots/1"
    snapshot.parent.mkdir(parents=True)
    config_dir.rename(snapshot)
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}')
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    with pytest.raises(UsageError, match=r"names '\.\./b', which lies outside of its folder"):
        make_plan(None, values={"model_name_or_path": "acme/m", "do_train": False})


@pytest.mark.parametrize("command", ["plan", "run", "generate", "serve", "export"])
def test_every_command_says_so_in_one_line(
    config_dir: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from ftcore.cli import main

    (config_dir / "config.json").write_text(DEEP)
    words = {"generate": ["--model", str(config_dir), "--prompt", "?"], "serve": ["--model", str(config_dir)]}
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model_name_or_path: {config_dir}\ntemplate: chatml\ndo_train: false\nexport_dir: {tmp_path / 'o'}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main([command, *words.get(command, [str(file)])])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "nests more than 100 levels deep" in err


def test_depth() -> None:
    def nested(levels: int) -> Any:
        value: Any = 1
        for number in range(levels):
            value = {"a": value} if number % 2 else [value]
        return value

    assert [too_deep(nested(levels)) for levels in (0, 1, DEEPEST, DEEPEST + 1, 100_000)] == [False] * 3 + [True] * 2
    assert [too_deep(nested(levels), 3) for levels in (3, 4)] == [False, True]
    assert not too_deep([{"a": [1]}, []], 3)


def test_read_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="cannot be read: byte 7 is not UTF-8"):
        read_object(tmp_path / "a.json")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_object(tmp_path / "b.json")
