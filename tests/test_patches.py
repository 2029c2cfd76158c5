"""What is patched in the process: only the places that docs/development/patched.md lists."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "development" / "patched.md"
LIBRARIES = ("transformers", "accelerate", "peft", "datasets", "trl", "bitsandbytes", "torch", "numpy")
REGISTRIES = ("AttentionInterface", "AttentionMaskInterface")
KNOWN = {
    # modules of a model: the two ways, which model transforms and quantised layers use
    "ftcore/training/model_transforms/patching.py: __class__ of patched",
    "ftcore/training/model_transforms/patching.py: attributes of a module",
    # hooks of modules, which torch offers
    "ftcore/training/callbacks/neftune.py: hook of embeddings",
    "ftcore/training/model_transforms/frozen_layers.py: hook of self.cache.layers[self.cache.last_frozen]",
    "ftcore/training/model_transforms/torch_compile.py: hook of layer",
    "plugins/ft_plugins/stages/ppo/objective.py: hook of model",
    # tensors
    "plugins/ft_plugins/backends/cpu/recompute.py: setattr on tensor",
    # the process
    "ftcore/training/attention/varlen.py: AttentionInterface.register",
    "ftcore/training/attention/varlen.py: AttentionMaskInterface.register",
    "ftcore/training/model_transforms/torch_compile.py: AttentionInterface.register",
    "ftcore/training/model_transforms/torch_compile.py: AttentionMaskInterface.register",
    "ftcore/training/model_transforms/torch_compile.py: torch._dynamo.config.recompile_limit",
    "plugins/ft_plugins/methods/adapters.py: setattr on peft_lora",
    "plugins/ft_plugins/models/processors.py: transformers.ProcessorMixin.check_argument_for_proper_class",
    "ftcore/utils/lazy_imports.py: __class__ of module",
    # objects of ft, and a model's generation settings
    "ftcore/data/row_stats.py: setattr on self",
    "ftcore/data/storage/cache.py: setattr on counts",
    "ftcore/inference/generation_config.py: setattr on config",
    "ftcore/training/step/guard.py: setattr on self",
}
"""File: what is patched. A place may leave this list; a new one needs a line in patched.md."""


def patches(code: str) -> Iterator[str]:
    """What a file's code patches: classes, ``forward``, attributes by name, hooks, registries, names of libraries."""
    tree = ast.parse(code)
    names = libraries(tree)
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if _one_target(node) else []
        for target in targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                yield from _assigned(part, names)
        if isinstance(node, ast.Call):
            yield from _called(node)


def _one_target(node: ast.AST) -> bool:
    return isinstance(node, ast.AugAssign | ast.AnnAssign)


def _assigned(target: ast.AST, names: dict[str, str]) -> Iterator[str]:
    if not isinstance(target, ast.Attribute):
        return
    whole = ast.unparse(target.value)
    if target.attr in ("__class__", "forward"):
        yield f"{target.attr} of {whole}"
    elif (first := whole.partition(".")[0]) in names:
        yield f"{names[first]}{whole[len(first) :]}.{target.attr}"


def _called(node: ast.Call) -> Iterator[str]:
    function = ast.unparse(node.func)
    if function == "setattr":
        yield f"setattr on {ast.unparse(node.args[0])}"
    elif isinstance(node.func, ast.Attribute):
        owner = ast.unparse(node.func.value)
        if node.func.attr.startswith("register_") and node.func.attr.endswith("_hook"):
            yield f"hook of {owner}"
        elif node.func.attr == "register" and owner in REGISTRIES:
            yield f"{owner}.register"
        elif node.func.attr == "update" and owner == "own":
            yield "attributes of a module"


def libraries(tree: ast.AST) -> dict[str, str]:
    """Local name -> full name of what is imported from a library, and of what is assigned from it."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if (first := alias.name.partition(".")[0]) in LIBRARIES:
                    found[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in LIBRARIES:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            value = ast.unparse(node.value)
            first = value.partition(".")[0]
            if isinstance(target, ast.Name) and isinstance(node.value, ast.Attribute) and first in found:
                found.setdefault(target.id, value)
    return found


def test_only_listed_places_patch() -> None:
    files = [file for base in ("ftcore", "plugins") for file in sorted((ROOT / base).rglob("*.py"))]
    found = {f"{file.relative_to(ROOT)}: {what}" for file in files for what in patches(file.read_text("utf-8"))}
    assert found == KNOWN


def test_the_page_names_every_file() -> None:
    page = PAGE.read_text("utf-8")
    assert [place for place in KNOWN if place.partition(":")[0] not in page] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("layer.__class__ = Fused", ["__class__ of layer"]),
        ("model.layers[0].forward, x = own, 1", ["forward of model.layers[0]"]),
        ("import torch\ntorch.backends.mkldnn.enabled = False", ["torch.backends.mkldnn.enabled"]),
        ("from peft.tuners import lora\nlora.is_bnb = None", ["peft.tuners.lora.is_bnb"]),
        ("import torch\nconfig: Any = torch._dynamo.config\nconfig.limit = 3", ["torch._dynamo.config.limit"]),
        ("setattr(tensor, 'x', 1)", ["setattr on tensor"]),
        ("layer.register_forward_hook(f)", ["hook of layer"]),
        ("AttentionInterface.register('a', f)", ["AttentionInterface.register"]),
        ("self.forward_of = 1\nx = layer.forward", []),
    ],
)
def test_what_is_found(code: str, found: list[str]) -> None:
    assert list(patches(code)) == found
