"""What `CausalLMForward.choose` has found out, kept: the same model by the same code is not asked again.

The two forwards of the question cost 1.1 of the 8 CPU seconds of a start. Their answer follows from the code and the
numbers that they are made of, and the name under which it is kept has them all: see `key`. Only the answer that most
models give is kept, the packed, shared way and the head that was hoped for; any other one comes with a warning, and is
asked for each time.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ftcore.training
from ftcore.training.attention import varlen
from ftcore.training.checkpointing.state import versions
from ftcore.training.kernels import matmul
from ftcore.utils.cache_dir import cache_root
from ftcore.utils.file_digests import stamp_of
from ftcore.utils.files import write_whole

_FORMAT = 2
_NAMES = ("_name_or_path", "name_or_path")
_GLIMPSE = 32
"""Numbers of each tensor that are looked at. Other weights differ there, be it by training or by another seed; that a
way is right for some weights and wrong for others is rare (sinks or biases that are zero), and is found out so."""


def probe_capabilities(scorer: Any) -> None:
    """`CausalLMForward.choose`, unless its answer for this model is kept."""
    name = key(scorer)
    path = cache_root() / "proven" / f"{name}.json"
    if name is not None and (way := _read(path, scorer)) is not None:
        vars(scorer).update(way)
        scorer.inner.set_attn_implementation(varlen.NAME)
        return
    hoped = scorer.fused
    scorer.choose()
    if name is not None and scorer.packed and scorer.shares and scorer.fused == hoped:
        _write(path, _way(scorer))


def key(scorer: Any) -> str | None:
    """A name for all that decides what the scorer's model computes, and how; None where that cannot be told.

    The configuration, with the model's own attention; the adapters'; the sources of every module's classes, of the
    scorer's and of the engine, by their stamps; the tensors by name, shape, dtype, device, whether they are trained,
    and their first numbers; versions; the processor, and torch's settings. A model whose forward was replaced in one
    of its modules, or that has hooks, is asked each time: there is no telling what these do.
    """
    modules = list(scorer.model.modules())
    if any(_is_changed(module) for module in modules):
        return None
    try:
        parts = [
            _FORMAT,
            versions(),
            [_config(scorer.inner.config), scorer.inner.config._attn_implementation],
            [_config(one) for one in getattr(scorer.model, "peft_config", {}).values()],
            _sources(scorer, modules),
            [_tensor(*named) for named in _tensors(scorer.model)],
            [scorer.model.training, repr(_way(scorer)), repr(matmul.get_choice())],
            _machine(scorer.inner.device),
        ]
    except (OSError, RuntimeError, NotImplementedError):
        return None  # tensors that have no numbers of their own, as on the device "meta"; sources that are gone
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _is_changed(module: nn.Module) -> bool:
    return bool("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


def _config(config: Any) -> dict[str, Any]:
    """Without what changes nothing that is computed, and the same in each process."""
    described = {name: value for name, value in config.to_dict().items() if name not in _NAMES}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in described.items()}


def _sources(scorer: Any, modules: list[nn.Module]) -> list[Any]:
    """Classes in the order of the modules, and the stamps of all files of theirs, of transformers and of the engine."""
    names = {kind.__module__ for one in (scorer, *modules) for kind in type(one).__mro__}
    names |= {name for name in sys.modules if name.startswith("transformers.") and name.count(".") < 3}
    files = {getattr(sys.modules.get(name), "__file__", None) for name in names}
    written = {*(Path(file) for file in files if file), *Path(ftcore.training.__file__).parent.rglob("*.py")}
    stamps = [[str(file), stamp_of(file)] for file in sorted(written)]
    return [[f"{kind.__module__}.{kind.__qualname__}" for kind in map(type, modules)], stamps]


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _tensor(name: str, tensor: torch.Tensor) -> list[Any]:
    first = tensor.detach().reshape(-1)[:_GLIMPSE].cpu().view(torch.uint8).numpy().tobytes().hex()
    return [name, str(tensor.dtype), tuple(tensor.shape), str(tensor.device), tensor.requires_grad, first]


def _machine(device: torch.device) -> list[Any]:
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    autocast = str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else ""
    torch_own = [torch.backends.cpu.get_cpu_capability(), torch.get_float32_matmul_precision()]
    return [str(device), cuda, autocast, str(torch.get_default_dtype()), *torch_own]


def _way(scorer: Any) -> dict[str, bool]:
    """What is chosen: whatever is said by yes or no."""
    return {name: value for name, value in vars(scorer).items() if isinstance(value, bool)}


def _read(path: Path, scorer: Any) -> dict[str, bool] | None:
    """What is kept; None where there is nothing, or nothing that fits."""
    try:
        way = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    fits = (
        isinstance(way, dict) and way.keys() == _way(scorer).keys() and all(type(one) is bool for one in way.values())
    )
    return way if fits and way["packed"] and way["shares"] and way["fused"] == scorer.fused else None


def _write(path: Path, way: dict[str, bool]) -> None:
    """In one move; a folder that cannot be written costs the question the next time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(way) + "\n")
