"""An adapter on other base weights than it was trained on: said by whatever loads it, and by nothing otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from ftcore.cli import group
from ftcore.config.planner import make_plan
from ftcore.inference.target import find_target, unfinished
from ftcore.models.adapters import other_bases
from ftcore.utils.file_digests import file_sha256

WORDS = {"do_train": True, "max_steps": 1, "save_strategy": "no", "template": "chatml", "max_new_tokens": 2}


@pytest.fixture
def invoke(tmp_path: Path, rows_file: Path) -> Callable[..., str]:
    """``invoke("run", *words, name=value)``: what is printed; of a run, on a file of training."""

    def call(command: str, *words: str, text: str = "", **values: Any) -> str:
        written = WORDS | {"dataset": str(rows_file)} | values if command == "run" else values
        file = tmp_path / "run.json"
        file.write_text(json.dumps(written))
        arguments = [command, *([str(file)] if command == "run" else []), *words]
        done = CliRunner().invoke(group, arguments, input=text, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return call


@pytest.mark.slow
def test_it_is_said_by_run_generate_chat_serve_and_export(
    invoke: Callable[..., str], tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, other = (shutil.copytree(tiny_model_dir, tmp_path / name) for name in ("base", "other"))
    tensors = load_file(other / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    same = shutil.copytree(base, tmp_path / "same")
    adapter = tmp_path / "adapter"
    invoke("run", model_name_or_path=str(base), output_dir=str(adapter))
    digests = [file_sha256(folder / "model.safetensors")[:12] for folder in (base, other)]
    line = (
        f"adapter {adapter} was trained on other base weights, {base} (model.safetensors sha256 {digests[0]}), "
        f"than those loaded here, {other} (model.safetensors sha256 {digests[1]})"
    )

    def said(model: Path) -> dict[str, int]:
        """Command -> how often it says the line."""
        counts: dict[str, int] = {}
        named = ("--model", str(model), "--adapter", str(adapter))
        few = ("max_new_tokens=2",)
        values = {"model_name_or_path": str(model), "adapter_name_or_path": str(adapter)}
        out = {name: str(tmp_path / f"{model.name}-{name}") for name in ("run", "export")}
        commands: dict[str, Callable[[], object]] = {
            "run": lambda: invoke("run", output_dir=out["run"], create_new_adapter=True, **values),
            "generate": lambda: invoke("generate", *few, *named, "--prompt", "hi"),
            "chat": lambda: invoke("chat", *few, *named, text="hi\n"),
            "export": lambda: invoke("export", *named, f"export_dir={out['export']}"),
            "serve": lambda: load(find_targets(words(model), {"a": str(adapter)})),
        }
        for name, command in commands.items():
            caplog.clear()
            text = str(command())
            counts[name] = text.count(line) + caplog.text.count(line)
        return counts

    from ftcore.cli.model_arguments import ModelArguments
    from ftcore.cli.serve import find_targets
    from ftcore.serving.served_models import load

    def words(model: Path) -> ModelArguments:
        return ModelArguments(file=None, overrides=(), model=str(model), adapters=(), force=False)

    assert said(other) == {"run": 1, "generate": 1, "chat": 1, "export": 1, "serve": 1}
    assert said(same) == {"run": 0, "generate": 0, "chat": 0, "export": 0, "serve": 0}


def test_what_is_merged_beneath_is_part_of_the_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    def adapter(name: str, *beneath: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        value = {"status": "finished", "adapter": True, "adapters_beneath": beneath, "data": {"default_system": None}}
        value |= {"model": {"name_or_path": "m", "revision": "main"}, "template": {"full_name": None, "sha256": ""}}
        (folder / "ft_run.json").write_text(json.dumps(value))
        return str(folder)

    first = adapter("first")
    second = adapter("second", "/moved/to/first")

    def lines(*names: str) -> list[str]:
        values = {"model_name_or_path": str(tiny_model_dir), "adapter_name_or_path": list(names)}
        return list(other_bases(make_plan(None, values=values)))

    assert lines(first) == lines(first, second) == []
    assert lines(second) == [
        f"adapter {second} was trained on a base with /moved/to/first merged in, "
        "but is loaded here on one with no adapter"
    ]
    assert lines(second, first) == [
        *lines(second),
        f"adapter {first} was trained on a base with no adapter merged in, but is loaded here on one with {second}",
    ]


@pytest.mark.parametrize(
    ("left", "line"),
    [
        ({"status": "finished"}, None),
        ({"status": "stopped", "cause": "stopped by SIGTERM"}, "the run was stopped: stopped by SIGTERM"),
        ({"status": "failed", "cause": "MemoryError"}, "the run failed: MemoryError"),
        (
            {"status": "running", "phase": "training", "process": {"host": "elsewhere", "pid": 7, "boot": "other"}},
            "the run is recorded as training; whether process 7 on elsewhere is alive is unknown on this machine",
        ),
    ],
)
def test_a_run_that_did_not_end_well_is_said(left: dict[str, Any], line: str | None, tmp_path: Path) -> None:
    """Of a folder that is named, of a checkpoint in it, and of a training file whose base model is used instead."""
    (tmp_path / "ft_run.json").write_text(json.dumps(left))
    (tmp_path / "checkpoint-3").mkdir()
    expected = [f"{tmp_path}: {line}"] if line else []
    assert unfinished(tmp_path, alone=False) == unfinished(tmp_path / "checkpoint-3", alone=False) == expected
    instead = "the base model is used without the trained weights"
    assert unfinished(tmp_path) == [f"{line}; {instead}" for line in expected]


def test_a_training_file_of_a_failed_run(tiny_model_dir: Path, tmp_path: Path, rows_file: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    value = {"status": "failed", "cause": "boom", "adapter": True, "adapters_beneath": []}
    value |= {"model": {"name_or_path": "m", "revision": "main"}, "template": {"full_name": None, "sha256": ""}}
    (out / "ft_run.json").write_text(json.dumps(value | {"data": {"default_system": None}}))
    file = tmp_path / "run.json"
    file.write_text(json.dumps(WORDS | {"model_name_or_path": str(tiny_model_dir), "output_dir": str(out)}))
    target = find_target(file)
    assert target.notes == (f"{out}: the run failed: boom; the base model is used without the trained weights",)
    done = CliRunner().invoke(group, ["export", str(file), f"export_dir={tmp_path / 'export'}"])
    assert str(done.exception) == (
        f"{file}: the run of this file has not finished ({out}: the run failed: boom); "
        "let the run finish, or name a checkpoint with --adapter or --model"
    )
