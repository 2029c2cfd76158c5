"""The Python blocks of the plugin docs run and train; links, paths and names of the docs exist."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ftcore.api.registry import Plugins

DOCS = Path(__file__).parent.parent / "docs"
ROOT = DOCS.parent
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("contrib/*/README.md")])
CURRENT = [page for page in PAGES if page.name not in ("CHANGELOG.md", "benchmark-history.md")]


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
        ("backend", "plain"),
    }


def test_hooks_page_blocks_load(with_plugins: Callable[..., Plugins]) -> None:
    modules = blocks("hooks.md")
    assert offered(with_plugins(**modules), modules) == set()


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_readmes_show_the_quickstart_file_as_it_is(page: str) -> None:
    root = DOCS.parent
    shown = (root / "examples" / "quickstart.yaml").read_text("utf-8")
    assert f"```yaml\n{shown}```\n" in (root / page).read_text("utf-8")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_dotted_names_exist(page: Path) -> None:
    """Deprecated names do not: importing one is a warning, which is an error here."""
    code = re.findall(r"`([^`\n]+)`", prose(page))
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    paths = [name for name in code if re.fullmatch(rf"(?:{folders})/[\w./*-]*", name)]
    assert [path for path in paths if not any(ROOT.glob(path.rstrip("/")))] == []
    unknown = []
    for name in code:
        if re.fullmatch(r"(?:ftcore|ft_plugins)(?:\.\w+)+", name):
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError):
                unknown.append(name)
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_attributes_of_components_exist(page: Path) -> None:
    """``Stage.supports_images``: in the class, or among its fields."""
    from ftcore.api import components

    unknown = []
    for name, attribute in re.findall(r"`([A-Z]\w+)\.(\w+)(?:\([^`]*\))?`", prose(page)):
        kind = getattr(components, name, None)
        if kind is not None and not hasattr(kind, attribute) and attribute not in kind.__dataclass_fields__:
            unknown.append(f"{name}.{attribute}")
    assert unknown == []


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
