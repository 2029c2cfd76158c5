"""Products of activations and weights on a CPU, by MKL or by oneDNN: whichever is the faster one on this machine.

torch gives float32 products to MKL, which is weak on AMD. Measured, GF/s of one core (MKL, oneDNN): Zen 2 forward
36, 45 and backward 33, 42; Zen 4 (1600 rows, 576 to 1536) forward 97, 109 and backward 102, 109, through a vocabulary
of 49,152 tokens 76, 88 and 99, 104. Small ones are faster by MKL (64 rows, 32 to 48: 38, 12). The choice is made once
per machine by a measurement of under a second and kept in the cache folder. Both differ in the last bits, so that
checkpoints keep the choice and a resumed run takes it from there.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch.nn import functional

from ftcore.artifacts import write_whole
from ftcore.folders import cache_root

log = logging.getLogger(__name__)

WORTH = 0.95
"""oneDNN is taken where it needs less than this share of MKL's time: above that it may be noise. On a Zen 3, where it
needs 1.12 of it, the best of six runs once said less than 0.97 beside other work, and the choice is kept for good."""
SMALL = 4 << 20
"""Floating point operations from which oneDNN is taken. On a Zen 4 both were as fast at 15 million (64 rows, 576 to
192); on a Zen 5 oneDNN makes twice MKL's operations a second from 5 million on, at 2 million as many."""
TURNS = 9
"""Measurements of each way."""
NO_MEMORY = {f"could not {what}" for what in ("create a primitive", "create a memory object", "execute a primitive")}
"""What oneDNN says where memory runs out. What it does not know it calls a primitive's descriptor."""
_SHAPE = (512, 576, 1024)
"""Rows, inputs and outputs of the products that are timed: 0.6 GF, 6 ms on a fast core, 20 on a slow one."""


@dataclass(frozen=True, slots=True)
class Products:
    """Which products oneDNN computes.

    Args:
        forward: ``x @ weight.T``.
        backward: ``gradient @ weight``.
    """

    forward: bool = False
    backward: bool = False


_used = Products()


def used() -> Products:
    """What is in use in this process; torch's own until `use` is called."""
    return _used


def use(products: Products) -> None:
    """Takes these from now on."""
    global _used
    _used = products if _onednn() is not None else Products()


@contextmanager
def using(products: Products) -> Iterator[None]:
    """Takes these for a while."""
    before = used()
    use(products)
    try:
        yield
    finally:
        use(before)


def through(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, room: torch.Tensor | None = None
) -> torch.Tensor:
    """``x @ weight.T + bias``; differentiable as torch's own.

    Args:
        x: ``[..., in]``.
        weight: ``[out, in]``.
        bias: ``[out]``.
        room: ``[N, out]``, where the result of an ``x`` of two dimensions is put if nothing needs gradients and it can
            be (oneDNN makes a tensor of its own).
    """
    if _used.forward and _served(x, weight):
        return _by_onednn(x, weight, bias)
    if room is not None:
        turned = weight.t()
        return torch.mm(x, turned, out=room) if bias is None else torch.addmm(bias, x, turned, out=room)
    return functional.linear(x, weight, bias)


def back(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``gradient @ weight``: ``[..., out]`` -> ``[..., in]``."""
    if _used.backward and _served(gradient, weight):
        # a transposed copy of the weight is no faster here: oneDNN packs what it is given
        return _by_onednn(gradient, weight.t())
    return gradient @ weight


def outer(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """``first.T @ second``, as gradients of weights are: ``[N, a]``, ``[N, b]`` -> ``[a, b]``."""
    turned = first.t()
    if _used.backward and _served(turned, second):
        return _by_onednn(turned, second.t())
    return turned @ second


def add_through(total: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, factor: float) -> torch.Tensor:
    """``total += factor * x @ weight.T``, in place; all of two dimensions."""
    if _used.forward and _served(x, weight):
        return total.add_(through(x, weight), alpha=factor)
    return add(total, x, weight.t(), factor)


def add_back(total: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``total += gradient @ weight``, in place; all of two dimensions."""
    if _used.backward and _served(gradient, weight):
        return total.add_(back(gradient, weight))
    return add(total, gradient, weight)


def add(total: torch.Tensor, first: torch.Tensor, second: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """``total += factor * first @ second``, in place; as ``addmm_``, which torch's FLOP counter does not know."""
    return torch.addmm(total, first, second, alpha=factor, out=total)


def plain(*tensors: torch.Tensor) -> bool:
    """Whether these are computed with on a CPU as they are: all float32, or all float64, and not under autocast."""
    if torch.is_autocast_enabled("cpu") or any(tensor.device.type != "cpu" for tensor in tensors):
        return False
    dtypes = {tensor.dtype for tensor in tensors}
    return len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}


def _served(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN's product is there for it: it knows no gradients, and in half precision torch takes it anyway."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    large = 2 * x.numel() // max(1, x.shape[-1]) * weight.numel() >= SMALL
    return large and x.dtype == torch.float32 and plain(x, weight)


def _onednn() -> Callable[..., Any] | None:
    """torch's private operator, where this build has it and the processor is one that it is made for."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    return cast("Callable[..., Any]", torch.ops.mkldnn._linear_pointwise)


def _by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``; torch's own where memory does not suffice.

    oneDNN makes code for each new shape, in pages of its own: under a limit of addresses there are none, although what
    was freed is enough for the product, and passes of half the rows failed likewise.
    """
    try:
        return cast("torch.Tensor", _onednn()(x, weight, bias, "none", [], ""))  # type: ignore[misc]
    except RuntimeError as error:
        if str(error) not in NO_MEMORY:
            raise
        return functional.linear(x, weight, bias)


def settle(device: str, kept: Products | None = None) -> None:
    """Takes a checkpoint's choice or the faster products of this machine, from the cache folder or measured now."""
    if device != "cpu" or _onednn() is None or kept is not None:
        use(kept or Products())
        return
    path, machine = cache_root() / "products.json", _machine()
    known = _read(path)
    if machine not in known:
        with _one_thread():
            known[machine] = asdict(_measured())
        _write(path, known)
    use(Products(**known[machine]))


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    capability = torch.backends.cpu.get_cpu_capability()
    return ", ".join((platform.machine(), name, capability, f"torch {torch.__version__}"))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Two threads wait for each other, the longer the more other work there is, and MKL's wait longer than oneDNN's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measured() -> Products:
    """Both ways in turn: the median of their ratios, and that of their best times, have to agree.

    None where the results differ by more than rounding.
    """
    rows, inputs, outputs = _SHAPE
    make = torch.Generator().manual_seed(0)
    x, weight, gradient = (
        torch.randn(*shape, generator=make) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
    )
    faster = []
    for product, tensor in ((through, x), (back, gradient)):
        spent: dict[bool, list[float]] = {False: [], True: []}
        results: dict[bool, torch.Tensor] = {}
        for taken in (False, True) * TURNS:
            with using(Products(taken, taken)), torch.no_grad():
                begun = time.process_time()
                try:
                    results[taken] = product(tensor, weight)
                except RuntimeError as error:
                    log.warning("oneDNN's products are not used: %s", error)
                    return Products()
                spent[taken].append(time.process_time() - begun)
        same = torch.allclose(results[False], results[True], rtol=1e-4, atol=1e-3)
        typical = median(one / other for one, other in zip(spent[True], spent[False], strict=True))
        faster.append(same and max(typical, min(spent[True]) / min(spent[False])) < WORTH)
    return Products(*faster)


def _read(path: Path) -> dict[str, dict[str, bool]]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {machine: asdict(Products(**choice)) for machine, choice in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, kept: dict[str, dict[str, bool]]) -> None:
    """In one move; a folder that cannot be written costs a measurement the next time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(kept, indent=2, sort_keys=True) + "\n")
