"""Every hook, called in its turn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ftcore.api import registry as plugin_module
from ftcore.api.components import (
    Backend,
    DatasetFormat,
    ForeignOption,
    InferenceEngine,
    Launcher,
    Method,
    ModelFamily,
    Optimizer,
    Stage,
)
from ftcore.api.registry import HOOKS
from ftcore.cli import group
from ftcore.config.planner import make_plan


@pytest.fixture
def run_file(tmp_path: Path, tiny_model_dir: Path, rows_file: Path) -> Path:
    """A run of three steps on the tiny model."""
    file = tmp_path / "run.json"
    values = {
        "model_name_or_path": str(tiny_model_dir), "do_train": True, "dataset": str(rows_file), "template": "chatml",
        "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 1, "num_train_epochs": 1,
        "logging_steps": 1,
    }  # fmt: skip
    file.write_text(json.dumps(values))
    return file


@pytest.mark.slow
def test_the_hooks_of_a_run_are_called_in_their_order(run_file: Path, with_plugins, hooks) -> None:
    from transformers import TrainerCallback

    from ftcore.runner.run import run

    called: list[str] = []

    class Callback(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            called.append(f"step {state.global_step}")

    def ft_foreign_options() -> dict[str, ForeignOption]:
        called.append("ft_foreign_options")
        return {}

    def ft_check_plan(plan: Any) -> list[Any]:
        called.append("ft_check_plan")
        return []

    def ft_load_tokenizer(plan: Any) -> None:
        called.append("ft_load_tokenizer")

    def ft_load_processor(plan: Any, tokenizer: Any) -> None:
        called.append(f"ft_load_processor {tokenizer.eos_token}")

    def ft_load_model(plan: Any, kwargs: dict[str, Any]) -> None:
        called.append(f"ft_load_model {sorted(kwargs)}")

    def ft_model_ready(plan: Any, model: Any, tokenizer: Any) -> None:
        called.append(f"ft_model_ready {type(model).__name__}")

    def ft_model_transforms(plan: Any) -> list[Any]:
        called.append("ft_model_transforms")
        return []

    def ft_callbacks(plan: Any) -> list[Any]:
        called.append("ft_callbacks")
        return [Callback()]

    def ft_run_finished(plan: Any, result: Any) -> None:
        called.append(f"ft_run_finished {result.output_dir.name} {'train_loss' in result.metrics}")

    functions = [ft_foreign_options, ft_check_plan, ft_load_tokenizer, ft_load_processor, ft_load_model]
    functions += [ft_model_ready, ft_model_transforms, ft_callbacks, ft_run_finished]
    plugins = with_plugins(acme=hooks(**{function.__name__: function for function in functions}))
    assert run(make_plan(run_file, plugins=plugins)) == 0
    assert list(dict.fromkeys(called)) == [
        "ft_foreign_options",
        "ft_check_plan",
        "ft_load_tokenizer",
        "ft_load_processor <|im_end|>",
        "ft_load_model ['dtype']",
        "ft_model_ready PeftModelForCausalLM",
        "ft_callbacks",
        "ft_model_transforms",
        "step 1",
        "step 2",
        "step 3",
        "ft_run_finished out True",
    ]


@pytest.mark.slow
def test_a_plugins_loader_comes_before_the_built_in(run_file: Path, with_plugins, hooks, tiny_model_dir: Path) -> None:
    """And a plugin's tokenizer and model are those that are trained."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftcore.runner.run import run

    loaded: list[Any] = []

    def ft_load_tokenizer(plan: Any) -> Any:
        loaded.append(AutoTokenizer.from_pretrained(tiny_model_dir))
        return loaded[-1]

    def ft_load_model(plan: Any, kwargs: dict[str, Any]) -> Any:
        loaded.append(AutoModelForCausalLM.from_pretrained(tiny_model_dir, **kwargs))
        return loaded[-1]

    plugins = with_plugins(acme=hooks(ft_load_tokenizer=ft_load_tokenizer, ft_load_model=ft_load_model))
    before = AutoModelForCausalLM.from_pretrained(tiny_model_dir).state_dict()
    assert run(make_plan(run_file, ["finetuning_type=full"], plugins=plugins)) == 0
    assert [type(thing).__name__ for thing in loaded] == ["TokenizersBackend", "LlamaForCausalLM"]
    after = loaded[1].state_dict()
    assert all(not tensor.equal(before[name]) for name, tensor in after.items())


@pytest.mark.parametrize(
    ("hook", "kind"),
    [
        ("ft_dataset_formats", DatasetFormat),
        ("ft_model_families", ModelFamily),
        ("ft_methods", Method),
        ("ft_stages", Stage),
        ("ft_optimizers", Optimizer),
        ("ft_launchers", Launcher),
        ("ft_inference_engines", InferenceEngine),
        ("ft_backends", Backend),
    ],
)
def test_every_kind_is_offered_through_its_hook(hook: str, kind: type, built_in, with_plugins, hooks) -> None:
    assert HOOKS[kind] == hook
    component = built_in.of(kind)[0].component
    renamed = dataclasses.replace(component, name="renamed", aliases=(), default=False)
    plugins = with_plugins(acme=hooks(**{hook: lambda: [renamed]}))
    assert plugins.find(kind, "renamed").full_name == "acme:renamed"
    assert plugins.find(kind, "renamed").component == renamed


def test_commands_of_plugins(with_plugins, hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    own = plugin_module.installed()

    def candidate(name: str, commands: dict[str, str]) -> plugin_module.Candidate:
        plugin = hooks(ft_commands=lambda: commands)
        return plugin_module.Candidate(name, "1.0", "plugin", lambda: plugin)

    more: list[plugin_module.Candidate] = [candidate("acme", {"hello": "ftcore.cli.env:command"})]
    monkeypatch.setattr(plugin_module, "installed", lambda: [*own, *more])

    def run(words: list[str]) -> Any:
        return CliRunner().invoke(group, words, prog_name="ft")

    assert "hello  ftcore.cli.env:command" in run(["--help"]).output
    assert run(["hello", "--json"]).exit_code == 0
    more.append(candidate("blob", {"hello": "x:y", "run": "x:y"}))
    helped = run(["--help"]).output
    assert all(name in helped for name in ("acme:hello", "blob:hello", "blob:run"))
    clash = run(["hello"]).exception
    assert str(clash) == "command 'hello' is registered more than once; write acme:hello or blob:hello"
    assert run(["acme:hello", "--json"]).exit_code == 0
    assert run(["run", "--help"]).output.startswith("Usage: ft run")
