"""The layers of docs/development/layers.md: what imports what, typing and imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "deprecated_names"),
    ("utils",),
    ("resources",),
    ("api",),
    ("models",),
    ("data",),
    ("config",),
    ("training", "inference"),
    ("runner", "serving", "ft_plugins"),
    ("export",),
    ("cli",),
)
"""From the bottom; each imports from below alone. A new file belongs to its package's layer without an edit here."""
BESIDE = ("ftcore", "testing", "pytest_plugin")
"""What is for tests of plugins: it imports any layer, and no layer imports it."""
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}


def modules(root: Path) -> Mapping[str, Path]:
    """Dotted name -> file."""
    bases = {"ftcore": root, "ft_plugins": root / "plugins"}
    files = [(base, file) for name, base in bases.items() for file in sorted((base / name).rglob("*.py"))]
    return {
        ".".join(file.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): file for base, file in files
    }


def imports(code: str, known: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    """``(line, module)`` of each import of a known module, wherever it stands."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known or node.module in known:
                    yield node.lineno, whole if whole in known else node.module


def package(module: str) -> str:
    """Of the layers: the second part of a name of ftcore's."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] or first if first == "ftcore" else first


def arrows(root: Path = ROOT) -> dict[str, list[tuple[int, str]]]:
    """Module -> what it imports."""
    known = modules(root)
    return {name: list(imports(file.read_text("utf-8"), known)) for name, file in known.items()}


def upward(found: Mapping[str, list[tuple[int, str]]]) -> list[str]:
    """Imports of another package that does not lie below, and of one that no layer has."""
    wrong = []
    for module, targets in found.items():
        here = package(module)
        for line, target in targets:
            there = package(target)
            if there == here or there == "ftcore" or here in BESIDE:
                continue
            if there not in RANK or here not in RANK or RANK[there] >= RANK[here]:
                wrong.append(f"{module}:{line} imports {target}")
    return wrong


def circles(found: Mapping[str, list[tuple[int, str]]]) -> list[list[str]]:
    """Modules that import each other by any way (Tarjan's strongly connected components of two and more)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for _, target in found.get(module, ()):
            if target not in number:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], number[target])
        if lowest[module] == number[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                components.append(sorted(component))

    for module in found:
        if module not in number:
            visit(module)
    return components


def test_every_package_has_a_layer() -> None:
    assert {package(module) for module in modules(ROOT)} - set(BESIDE) == set(RANK)


def test_nothing_imports_upward() -> None:
    assert upward(arrows()) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(arrows()) == []


@pytest.mark.parametrize(
    ("files", "wrong", "circle"),
    [
        ({"ftcore/data/a.py": "def f():\n    from ftcore.cli import b"}, ["ftcore.data.a:2 imports ftcore.cli.b"], []),
        (
            {"ftcore/data/a.py": "if TYPE_CHECKING:\n    from ftcore.training.b import C"},
            ["ftcore.data.a:2 imports ftcore.training.b"],
            [],
        ),
        ({"ftcore/training/a.py": "import ftcore.inference.b"}, ["ftcore.training.a:1 imports ftcore.inference.b"], []),
        ({"ftcore/new/a.py": "from ftcore import errors"}, ["ftcore.new.a:1 imports ftcore.errors"], []),
        ({"ftcore/data/a.py": "from ftcore.data.b import C", "ftcore/data/b.py": "import ftcore.data.a"},
         [], [["ftcore.data.a", "ftcore.data.b"]]),
        ({"ftcore/cli/a.py": "from ftcore.data import b"}, [], []),
    ],
    ids=["in a function", "for types", "same layer", "no layer", "circle", "downward"],
)  # fmt: skip
def test_what_is_found(tmp_path: Path, files: dict[str, str], wrong: list[str], circle: list[list[str]]) -> None:
    for name in (
        "ftcore/errors.py",
        "ftcore/cli/b.py",
        "ftcore/training/b.py",
        "ftcore/inference/b.py",
        "ftcore/data/b.py",
    ):
        files = {name: "", **files}
    for name, code in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    (tmp_path / "plugins/ft_plugins").mkdir(parents=True)
    found = arrows(tmp_path)
    assert (upward(found), circles(found)) == (wrong, circle)
