"""What is talked to: model, adapters, template and system message, found from what the user names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcore.errors import UsageError
from ftcore.inference.target import Target, find_target

NO_TEMPLATE = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def left(tmp_path: Path, config_dir: Path) -> Callable[..., Path]:
    """``left("name", ...)``: a folder as a run leaves it, without weights."""

    def make(name: str, **more: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        found: dict[str, Any] = {
            "status": "finished",
            "model": {"name_or_path": str(config_dir), "revision": "main"},
            "adapter": True,
            "adapters_beneath": [],
            "template": {"name": "chatml", "full_name": "ftcore:chatml", "sha256": NO_TEMPLATE},
            "data": {"default_system": "be brief"},
        }
        (folder / "ft_run.json").write_text(json.dumps(found | more))
        kind = "adapter_config.json" if (found | more)["adapter"] else "config.json"
        text = "{}" if kind == "adapter_config.json" else (config_dir / kind).read_text()
        (folder / kind).write_text(text)
        return folder

    return make


@pytest.fixture
def find(built_in: Any) -> Callable[..., dict[str, Any]]:
    """``find(file, ...)``: what `find_target` decides."""

    def run(file: Path | None = None, **more: Any) -> dict[str, Any]:
        return facts(find_target(file, plugins=built_in, **more))

    return run


def facts(target: Target) -> dict[str, Any]:
    plan = target.plan
    return {
        "model": plan.model.model_name_or_path,
        "adapters": plan.model.adapter_name_or_path,
        "template": plan.template.component.name if plan.template else None,
        "system": plan.data.default_system,
        "trained": target.trained.folder if target.trained else None,
    }


def test_a_model_alone(find: Any, config_dir: Path) -> None:
    bare = {"model": str(config_dir), "adapters": (), "template": None, "system": None, "trained": None}
    assert find(model=str(config_dir)) == bare
    assert find(overrides=[f"model_name_or_path={config_dir}"]) == bare
    assert find(model=str(config_dir), overrides=["template=llama3"]) == bare | {"template": "llama3"}


def test_an_adapter_brings_its_model_template_and_system_message(find: Any, left: Any, config_dir: Path) -> None:
    folder = left("adapter", adapters_beneath=["a/b"])
    known = {
        "model": str(config_dir),
        "adapters": ("a/b", str(folder)),
        "template": "chatml",
        "system": "be brief",
        "trained": folder,
    }
    assert find(adapters=[str(folder)]) == known
    assert find(overrides=[f"adapter_name_or_path={folder}"]) == known
    assert find(adapters=["c/d", str(folder)]) == known | {"adapters": ("c/d", str(folder))}
    assert find(adapters=[str(folder)], overrides=["default_system=x"]) == known | {"system": "x"}
    assert find(adapters=[str(folder)], overrides=["template=qwen"]) == known | {"template": "qwen"}
    assert find(adapters=[str(folder)], model="other/model") == known | {"model": "other/model"}


def test_a_checkpoint_is_of_its_run(find: Any, left: Any, config_dir: Path) -> None:
    folder = left("adapter")
    checkpoint = folder / "checkpoint-7"
    checkpoint.mkdir()
    (checkpoint / "adapter_config.json").write_text("{}")
    found = find(adapters=[str(checkpoint)])
    assert found["trained"] == checkpoint
    assert (found["adapters"], found["template"]) == ((str(checkpoint),), "chatml")


@pytest.mark.parametrize(("template", "system"), [("ftcore:chatml", "be brief"), (None, None)])
def test_a_trained_model_brings_its_template(find: Any, left: Any, template: str | None, system: str | None) -> None:
    # its own template, saved with the tokenizer, has the system message in it: not a second time
    folder = left("full", adapter=False, template={"name": None, "full_name": template, "sha256": NO_TEMPLATE})
    expected = {
        "model": str(folder),
        "adapters": (),
        "template": template and "chatml",
        "system": system,
        "trained": folder,
    }
    assert find(model=str(folder)) == expected


@pytest.fixture
def run_file(tmp_path: Path, config_dir: Path) -> Callable[..., Path]:
    """A training file whose data are gone."""

    def make(output_dir: Path, *lines: str) -> Path:
        file = tmp_path / "run.yaml"
        text = [
            f"model_name_or_path: {config_dir}",
            "dataset: gone",
            "do_train: true",
            "val_size: 0.1",
            "eval_strategy: steps",
            "resume_from_checkpoint: gone",
            "bf16: true",
            f"output_dir: {output_dir}",
            *lines,
        ]
        file.write_text("\n".join(text))
        return file

    return make


def test_a_training_file_means_what_its_run_left(
    find: Any, left: Any, run_file: Any, tmp_path: Path, config_dir: Path
) -> None:
    base = {"model": str(config_dir), "adapters": (), "template": None, "system": None, "trained": None}
    assert find(run_file(tmp_path / "none")) == base
    assert find(run_file(left("broken", status="running"))) == base
    adapter = left("adapter")
    known = base | {"template": "chatml", "system": "be brief"}
    assert find(run_file(adapter)) == known | {"adapters": (str(adapter),), "trained": adapter}
    assert find(run_file(adapter), model=str(config_dir)) == base
    assert find(run_file(adapter, "template: qwen"))["template"] == "qwen"
    full = left("full", adapter=False)
    lines = ("finetuning_type: full",)
    assert find(run_file(full, *lines)) == known | {"model": str(full), "trained": full}


def test_peft_says_the_base_of_an_adapter_that_is_not_ours(find: Any, config_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(config_dir)}))
    found = find(adapters=[str(folder)])
    assert (found["model"], found["adapters"], found["trained"]) == (str(config_dir), (str(folder),), None)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({}, "no model is given; write a training file, --model or --adapter"),
        ({"adapters": ["no/such/folder"]}, "there is no adapter 'no/such/folder'; write a folder or a hub id"),
        ({"adapters": ["a/b"]}, "adapter a/b does not name its base model; add --model"),
    ],
)
def test_what_cannot_be(find: Any, named: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        find(**named)
    assert str(error.value) == message


def test_a_manifest_that_cannot_be_read(find: Any, left: Any) -> None:
    folder = left("adapter")
    (folder / "ft_run.json").write_text("{}")
    with pytest.raises(UsageError) as error:
        find(adapters=[str(folder)])
    assert str(error.value) == f"{folder}/ft_run.json cannot be read: KeyError('model'); write the folder of a run"


def trained_run(folder: Path, model: Path, *overrides: str) -> Path:
    """A run of two steps that teaches "hello" -> "one two three four five"."""
    from ftcore.cli import main

    data = folder / "rows.jsonl"
    data.write_text(json.dumps({"instruction": "hello", "output": "one two three four five"}) + "\n")
    file = folder / "run.yaml"
    file.write_text(
        f"model_name_or_path: {model}\ndataset: {data}\ndo_train: true\ntemplate: chatml\ndefault_system: be brief\n"
        f"output_dir: {folder / 'out'}\nmax_steps: 60\nlearning_rate: 1e-2\nsave_strategy: 'no'\nlora_rank: 16\n"
    )
    with pytest.raises(SystemExit) as end:
        main(["run", str(file), *overrides])
    assert end.value.code == 0
    return file


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_is_talked_to_in_the_form_that_it_learnt(method: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    from ftcore.api.inference_types import Prompt
    from ftcore.api.samples import Message
    from ftcore.inference.answers import collect

    file = trained_run(tmp_path, tiny_model_dir, f"finetuning_type={method}")
    out = str(tmp_path / "out")
    named = {"adapters": [out]} if method == "lora" else {"model": out}
    for target in (
        find_target(file, overrides=["do_sample=false", f"finetuning_type={method}"]),
        find_target(None, overrides=["do_sample=false"], **named),
    ):
        generator = target.load()
        prompts = [Prompt((Message("user", "hello"),), settings={"max_new_tokens": 40})]
        assert [answer.text for answer in collect(generator.stream(prompts), 1)] == ["one two three four five"]
        assert generator.tokenizer.decode(generator.task(0, prompts[0]).ids) == (
            "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        )
    other = find_target(None, overrides=["template=smollm2"], **named)
    with pytest.raises(UsageError) as error:
        other.load()
    assert str(error.value) == (
        f"command line: template ftcore:smollm2 differs from that of {out}; the run used ftcore:chatml; "
        "--force uses it anyway"
    )
    assert other.load(force=True).renderer.default_system == "be brief"
