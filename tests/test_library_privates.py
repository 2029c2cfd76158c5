"""What ft uses of the libraries' private parts: nothing of transformers' Trainer, and else only what is listed here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = ("transformers", "accelerate", "peft", "datasets", "trl", "bitsandbytes", "torch")
KNOWN = {
    # chat templates are compiled with the filters and functions that transformers gives them, which has no public way
    "ftcore/data/chat_template/jinja_env.py: transformers.utils.chat_template_utils._compile_jinja_template",
    # the compiler's options and errors
    "ftcore/training/model_transforms/torch_compile.py: torch._dynamo",
    "ftcore/training/model_transforms/torch_compile.py: torch._inductor.list_mode_options",
    # operators without a public name
    "plugins/ft_plugins/backends/cpu/attention.py: torch.cpu._is_amx_tile_supported",
    "plugins/ft_plugins/backends/cpu/attention_gemm.py: torch.ops.aten._softmax_backward_data",
    "plugins/ft_plugins/backends/cpu/matmul.py: torch.ops.mkldnn._linear_pointwise",
    # the base class of all dropouts
    "plugins/ft_plugins/backends/cpu/thread_pool.py: torch.nn.modules.dropout._DropoutNd",
}
"""File: private name. A name may leave this list; a new one needs a reason beside it."""


def files() -> list[Path]:
    return [file for base in ("ftcore", "plugins") for file in sorted((ROOT / base).rglob("*.py"))]


def imported(tree: ast.AST) -> dict[str, str]:
    """Local name -> full name, of what is imported from a library, wherever the import stands."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in LIBRARIES:
                    whole = alias.name if alias.asname else alias.name.partition(".")[0]
                    found[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in LIBRARIES:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def private_uses(code: str) -> Iterator[str]:
    """Full names of private parts that are imported, or reached from an import."""
    tree = ast.parse(code)
    names = imported(tree)
    yield from filter(private, names.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            first, parts = node.value, [node.attr]
            while isinstance(first, ast.Attribute):
                parts.append(first.attr)
                first = first.value
            if isinstance(first, ast.Name) and first.id in names:
                yield ".".join([names[first.id], *reversed(parts)])


def trainer_uses(code: str) -> Iterator[str]:
    """Classes that derive from a Trainer of transformers, and attributes of it that are used."""
    tree = ast.parse(code)
    trainers = {name for name, whole in imported(tree).items() if whole.split(".")[-1] in ("Trainer", "Seq2SeqTrainer")}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (f"class {node.name}" for base in node.bases if ast.unparse(base).split(".")[-1] in trainers)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in trainers:
            yield node.attr


def test_the_list_of_private_parts_is_whole_and_has_no_more() -> None:
    found = {f"{file.relative_to(ROOT)}: {name}" for file in files() for name in private_uses(file.read_text("utf-8"))}
    assert found == KNOWN


def test_of_transformers_trainer_only_a_public_function_is_used() -> None:
    """Nothing derives from it and no object of it is made, so nothing private of it can be overridden or read."""
    found = {use for file in files() for use in trainer_uses(file.read_text("utf-8"))}
    assert found == {"get_optimizer_cls_and_kwargs"}


@pytest.mark.parametrize(
    ("code", "privates", "trainer"),
    [
        ("from transformers import Trainer\nclass Own(Trainer): pass", [], ["class Own"]),
        (
            "def f():\n    from transformers import Trainer as T\n    T._save(1)",
            ["transformers.Trainer._save"],
            ["_save"],
        ),
        ("import torch\ntorch.cuda._lazy_init()", ["torch.cuda._lazy_init"], []),
        ("from peft._private import x", ["peft._private.x"], []),
        ("from ftcore.training.trainer import Trainer\nTrainer._step", [], []),
        ("import torch\nself._x = torch.nn.Linear.__init__", [], []),
    ],
)
def test_what_is_found(code: str, privates: list[str], trainer: list[str]) -> None:
    assert (list(private_uses(code)), list(trainer_uses(code))) == (privates, trainer)
