"""What `CausalLMForward.probe_capabilities` has found out, kept: the same model by the same code is not asked again.

The two forwards of the question cost 1.1 of the 8 CPU seconds of a start. Their answer follows from the code and the
numbers that they are made of, and the name under which it is kept has them all: see `key`. Only the answer that most
models give is kept, the packed, shared way and the head that was expected; any other one comes with a warning, and is
asked for each time.
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
from ftcore.training.kernels import matmul
from ftcore.utils.content_store import CAPABILITY_PROBES, Entry, entry_name, store_root
from ftcore.utils.hashing import package_of

SOURCES = (package_of(__name__),)
"""Packages whose code computes, besides that of the model's own classes."""
_NAMES = ("_name_or_path", "name_or_path")
_SAMPLED = 32
"""Numbers of each tensor that are looked at. Other weights differ there, be it by training or by another seed; that a
way is right for some weights and wrong for others is rare (sinks or biases that are zero), and is found out so."""


def probe_capabilities(scorer: Any) -> None:
    """`CausalLMForward.probe_capabilities`, unless its answer for this model is kept."""
    name = key(scorer)
    entry = None if name is None else Entry(CAPABILITY_PROBES, name, store_root())
    if entry is not None and _fits(way := entry.read_value(), scorer):
        vars(scorer).update(way)
        scorer.inner.set_attn_implementation(varlen.NAME)
        return
    fused_before = scorer.fused
    scorer.probe_capabilities()
    if entry is not None and scorer.packed and scorer.shares and scorer.fused == fused_before:
        with suppress(OSError):  # a folder that cannot be written costs the question the next time
            entry.write(type(scorer.inner).__name__, _way(scorer))


def key(scorer: Any) -> str | None:
    """A name for all that decides what the scorer's model computes, and how; None where that cannot be told.

    The configuration, with the model's own attention; the adapters'; the sources of every module's classes, of the
    scorer's and of the engine; the tensors by name, shape, dtype, device, whether they are trained, and their first
    numbers; versions; the processor, and torch's settings. A model whose forward was replaced in one of its modules, or
    that has hooks, is asked each time: there is no telling what these do.
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
            [scorer.model.training, repr(_way(scorer)), repr(matmul.get_choice())],
            _machine(scorer.inner.device),
        ]
        return entry_name(parts, [*SOURCES, *_sources(scorer, modules)])
    except (OSError, RuntimeError, NotImplementedError):
        return None  # tensors that have no numbers of their own, as on the device "meta"; sources that are gone


def _is_changed(module: nn.Module) -> bool:
    return bool("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


def _config(config: Any) -> dict[str, Any]:
    """Without what changes nothing that is computed, and the same in each process."""
    described = {name: value for name, value in config.to_dict().items() if name not in _NAMES}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in described.items()}


def _sources(scorer: Any, modules: list[nn.Module]) -> list[Path]:
    """Files of the modules' and the scorer's classes, and transformers' own that all models use."""
    common = {name for name in sys.modules if name.startswith("transformers.") and name.count(".") < 3}
    return [*files_of_classes([scorer, *modules]), *_files(common)]


def files_of_classes(objects: Iterable[object]) -> list[Path]:
    """Python files in which the objects' classes, and those that they inherit from, are written."""
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


def _way(scorer: Any) -> dict[str, bool]:
    """What is chosen: whatever is said by yes or no."""
    return {name: value for name, value in vars(scorer).items() if isinstance(value, bool)}


def _fits(way: Any, scorer: Any) -> bool:
    """Whether what is kept answers what is asked."""
    if not isinstance(way, dict) or way.keys() != _way(scorer).keys():
        return False
    plain = all(type(one) is bool for one in way.values())
    return plain and way["packed"] and way["shares"] and way["fused"] == scorer.fused
