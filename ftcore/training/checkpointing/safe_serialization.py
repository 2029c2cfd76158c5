"""Exact serialisation of nested states without pickle: structure and numbers as JSON, tensors as safetensors.

JSON writes a float in the shortest form that reads back to the same bits. Ints of any size, NaN and infinities work
too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def save_pytree(folder: Path, name: str, tree: Any) -> None:
    """Writes ``name.json`` and, where the tree holds tensors, ``name.safetensors``.

    Args:
        tree: dicts (with any of these as keys), lists, tuples, tensors, str, int, float, bool, None.

    Raises:
        TypeError: for anything else.
    """
    tensors = _Tensors()
    text = json.dumps(_encode(tree, tensors), ensure_ascii=False)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    if tensors.by_key:
        save_file(tensors.by_key, folder / f"{name}.safetensors")


def load_pytree(folder: Path, name: str) -> Any:
    """Reads what `save_pytree` wrote; tensors are on the CPU."""
    file = folder / f"{name}.safetensors"
    tensors = load_file(file) if file.is_file() else {}
    return _decode(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), tensors)


class _Tensors:
    """Tensors by key. A tensor that occurs several times, such as a map shared by states, has one key."""

    def __init__(self) -> None:
        self.by_key: dict[str, torch.Tensor] = {}
        self._keys: dict[tuple[int, torch.Size, torch.dtype], str] = {}

    def key(self, tensor: torch.Tensor) -> str:
        place = (tensor.data_ptr(), tensor.shape, tensor.dtype)
        if not tensor.numel() or place not in self._keys:
            self._keys[place] = str(len(self.by_key))
            self.by_key[self._keys[place]] = tensor
        return self._keys[place]


def _encode(tree: Any, tensors: _Tensors) -> Any:
    if tree is None or isinstance(tree, str | int | float):
        return tree
    if isinstance(tree, torch.Tensor):
        return {"tensor": tensors.key(tree.detach().cpu().contiguous())}
    if isinstance(tree, list):
        return [_encode(item, tensors) for item in tree]
    if isinstance(tree, tuple):
        return {"tuple": [_encode(item, tensors) for item in tree]}
    if isinstance(tree, dict):
        return {"dict": [[_encode(key, tensors), _encode(value, tensors)] for key, value in tree.items()]}
    raise TypeError(f"a {type(tree).__name__} cannot be saved in a checkpoint: {tree!r}")


def _decode(data: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(data, list):
        return [_decode(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, value),) = data.items()
    if kind == "tensor":
        return tensors[value]
    items = _decode(value, tensors)
    return tuple(items) if kind == "tuple" else dict(items)
