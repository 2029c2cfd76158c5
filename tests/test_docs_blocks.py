"""The Python blocks of the plugin docs are run: what they show is a plugin that loads, and that trains."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ftcore.api.registry import Plugins

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str) -> dict[str, ModuleType]:
    """Each block as a module of its own, over the names of the blocks above it."""
    text = (DOCS / page).read_text("utf-8")
    names: dict[str, Any] = {}
    modules = {}
    for number, source in enumerate(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S), 1):
        before = dict(names)
        exec(compile(source, f"{page} block {number}", "exec", dont_inherit=True), names)
        module = ModuleType(f"block_{number}")
        module.__dict__.update({name: value for name, value in names.items() if before.get(name) is not value})
        modules[module.__name__] = module
    return modules


def offered(plugins: Plugins, modules: dict[str, ModuleType]) -> set[tuple[str, str]]:
    """Kind and name of what the blocks offer; every one of them is loaded in full."""
    assert {plugin.status for plugin in plugins.listed if plugin.distribution in modules} == {"ok"}
    return {(offer.component.kind, offer.component.name) for offer in plugins.offers if offer.distribution in modules}


def test_plugins_page_shows_one_component_of_every_kind(with_plugins: Callable[..., Plugins]) -> None:
    modules = blocks("plugins.md")
    assert offered(with_plugins(**modules), modules) == {
        ("chat_template", "shout"),
        ("optimizer", "adagrad-decay"),
        ("dataset_format", "question-answer"),
        ("model_family", "nanobird"),
        ("method", "norms-only"),
        ("stage", "focal"),
        ("launcher", "nice"),
        ("inference_engine", "echo"),
    }


def test_hooks_page_blocks_load(with_plugins: Callable[..., Plugins]) -> None:
    modules = blocks("hooks.md")
    assert offered(with_plugins(**modules), modules) == set()


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_readmes_show_the_quickstart_file_as_it_is(page: str) -> None:
    root = DOCS.parent
    shown = (root / "examples" / "quickstart.yaml").read_text("utf-8")
    assert f"```yaml\n{shown}```\n" in (root / page).read_text("utf-8")


@pytest.mark.slow
def test_plugins_page_trains(with_plugins: Callable[..., Plugins], tiny_model_dir: Path, tmp_path: Path) -> None:
    """One run in which stage, method, optimizer, template and format are those of the page."""
    from safetensors.numpy import load_file

    from ftcore.config.planner import make_plan
    from ftcore.resources.model_shapes import Architecture
    from ftcore.runner.run import run

    rows = [{"question": f"question {number}", "answer": f"answer {number}"} for number in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    chosen = {"stage": "focal", "finetuning_type": "norms-only", "optim": "adagrad-decay", "template": "shout"}
    chosen |= {"infer_backend": "echo", "launcher": "local", "adagrad_decay": 0.1, "learning_rate": 0.01}
    files = {"model_name_or_path": str(tiny_model_dir), "dataset": str(tmp_path / "rows.json")}
    values = chosen | files | {"do_train": True, "max_steps": 2, "output_dir": str(tmp_path / "out")}
    plan = make_plan(None, plugins=with_plugins(**blocks("plugins.md")), values=values)
    assert run(plan) == 0

    before = {n: t for n, t in load_file(tiny_model_dir / "model.safetensors").items() if "norm" in n}
    after = load_file(tmp_path / "out" / "norms.safetensors")
    assert after.keys() == before.keys()
    # Adagrad's first step moves every weight by the learning rate, the second one by less
    assert all(0 < abs(after[name] - before[name]).max() < 0.02 for name in before)
    architecture = Architecture.from_config(plan.config)
    assert plan.method.component.count(architecture, None)[1] == sum(tensor.size for tensor in after.values())
