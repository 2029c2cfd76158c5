"""Caches the results of `CausalLMForward.probe_capabilities` for the same model and code.

The two forward passes of the probe take 1.1 of the 8 CPU seconds of a start. Code and weights decide their result, and
both are part of the key: see `key`. Only the most common result is cached: packed, with shared prefixes and the
expected head. Any other result comes with a warning, and is probed at every start.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftcore.training.attention import varlen
from ftcore.training.checkpointing.state import versions
from ftcore.utils.content_store import CAPABILITY_PROBES, Entry, entry_name, store_root
from ftcore.utils.hashing import package_of

SOURCES = (package_of(__name__),)
"""Packages whose sources are part of the key, besides those of the backend and of the model's classes."""
_NAMES = ("_name_or_path", "name_or_path")
_SAMPLED = 32
"""Numbers of each tensor that are part of the key. They differ between trained weights and between seeds. Few
capabilities depend on the values of weights, such as attention sinks or biases that are zero."""


def probe_capabilities(scorer: Any) -> None:
    """Sets the scorer's capabilities from the cache, or by `CausalLMForward.probe_capabilities`."""
    name = key(scorer)
    entry = None if name is None else Entry(CAPABILITY_PROBES, name, store_root())
    if entry is not None and _fits(way := entry.read_value(), scorer):
        vars(scorer).update(way)
        scorer.inner.set_attn_implementation(varlen.NAME)
        return
    fused_before = scorer.fused
    scorer.probe_capabilities()
    if entry is not None and scorer.packed and scorer.shares and scorer.fused == fused_before:
        with suppress(OSError):  # without a writable folder the next start probes again
            entry.write(type(scorer.inner).__name__, capabilities_of(scorer))


def key(scorer: Any) -> str | None:
    """The cache key of a scorer: everything that decides what its model computes; None where that is unknown.

    It covers the configurations of model and adapters, and the sources of the classes of modules and scorer and of the
    engine. It covers each tensor's name, shape, dtype, device, ``requires_grad`` and first numbers. It covers versions,
    the processor, and torch's settings. A model with a replaced forward or with hooks has no key: their effect is
    unknown.
    """
    modules = list(scorer.model.modules())
    if any(_is_changed(module) for module in modules):
        return None
    try:
        parts = [
            versions(),
            [_config(scorer.inner.config), scorer.inner.config._attn_implementation],
            [_config(one) for one in getattr(scorer.model, "peft_config", {}).values()],
            [f"{kind.__module__}.{kind.__qualname__}" for kind in map(type, modules)],
            [_tensor(*named) for named in _tensors(scorer.model)],
            [scorer.model.training, repr(capabilities_of(scorer)), scorer.backend.numerics_key()],
            _machine(scorer.inner.device),
        ]
        return entry_name(parts, [*SOURCES, *scorer.backend.sources(), *_sources(scorer, modules)])
    except (OSError, RuntimeError, NotImplementedError):
        return None  # tensors without numbers, as on the device "meta"; or missing source files


def _is_changed(module: nn.Module) -> bool:
    return bool("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


def _config(config: Any) -> dict[str, Any]:
    """The configuration without fields that do not affect results, and in an order that is equal in all processes."""
    described = {name: value for name, value in config.to_dict().items() if name not in _NAMES}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in described.items()}


def _sources(scorer: Any, modules: list[nn.Module]) -> list[Path]:
    """Source files of the classes of modules and scorer, and transformers' files that all models use."""
    common = {name for name in sys.modules if name.startswith("transformers.") and name.count(".") < 3}
    return [*files_of_classes([scorer, *modules]), *_files(common)]


def files_of_classes(objects: Iterable[object]) -> list[Path]:
    """Python files that define the objects' classes and their base classes."""
    return _files({kind.__module__ for one in objects for kind in type(one).__mro__})


def _files(names: Iterable[str]) -> list[Path]:
    files = {getattr(sys.modules.get(name), "__file__", None) for name in names}
    return [Path(file) for file in files if file and file.endswith(".py")]


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _tensor(name: str, tensor: torch.Tensor) -> list[Any]:
    first = tensor.detach().reshape(-1)[:_SAMPLED].cpu().view(torch.uint8).numpy().tobytes().hex()
    return [name, str(tensor.dtype), tuple(tensor.shape), str(tensor.device), tensor.requires_grad, first]


def _machine(device: torch.device) -> list[Any]:
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    autocast = str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else ""
    torch_own = [torch.backends.cpu.get_cpu_capability(), torch.get_float32_matmul_precision()]
    return [str(device), cuda, autocast, str(torch.get_default_dtype()), *torch_own]


def capabilities_of(scorer: Any) -> dict[str, bool]:
    """The scorer's capabilities: its boolean attributes."""
    return {name: value for name, value in vars(scorer).items() if isinstance(value, bool)}


def _fits(way: Any, scorer: Any) -> bool:
    """Whether a cached result fits the scorer."""
    if not isinstance(way, dict) or way.keys() != capabilities_of(scorer).keys():
        return False
    plain = all(type(one) is bool for one in way.values())
    return plain and way["packed"] and way["shares"] and way["fused"] == scorer.fused
