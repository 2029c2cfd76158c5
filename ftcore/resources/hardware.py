"""Detects the hardware without importing torch."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

NUM_WORKERS = 2
"""Workers of a backend that computes on several CPU threads, which share the threads of the process evenly."""
_M_ARENA_MAX = -8
"""glibc, malloc.h."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Facts that a plan depends on.

    Args:
        memory: bytes of memory for the model: of the first GPU, else of the machine.
        cuda: compute capability of the first CUDA device, such as ``(9, 0)``; None without one. AMD GPUs
            count too, since torch calls them cuda: ``(9, 4)`` is gfx942.
        cpu_bf16: whether the processor has bfloat16 instructions (AVX512-BF16 or AMX). With AVX2 it is emulated, ten
            times slower than float32 (measured on Zen 2: 2.8 to 5.4 GF/s per core, 36 in float32).
    """

    memory: int
    cuda: tuple[int, int] | None = None
    cpu_bf16: bool = False

    @property
    def bf16(self) -> bool:
        """Whether the hardware supports bfloat16, without emulation."""
        return self.cuda >= (8, 0) if self.cuda else self.cpu_bf16

    @property
    def name(self) -> str:
        """The name in messages."""
        return f"the GPU (compute capability {self.cuda[0]}.{self.cuda[1]})" if self.cuda else "this CPU"


@cache
def detect() -> Hardware:
    """The hardware that this process runs on.

    ``FT_CPU_BF16`` (0 or 1) overrides the detection of bfloat16: for tests, which need the same results everywhere, and
    for virtual machines that hide it.
    """
    if gpu := _cuda() or _rocm():
        return Hardware(memory=gpu[1], cuda=gpu[0])
    return Hardware(memory=_machine_memory(), cpu_bf16=_cpu_bf16())


def devices() -> tuple[str, ...]:
    """The types of device that are detected here, by torch's names, the one that a run prefers first."""
    return ("cuda", "cpu") if detect().cuda else ("cpu",)


def machine(on_cpu: bool) -> Hardware:
    """The hardware that a run uses, which may leave out the GPU."""
    found = detect()
    return Hardware(memory=_machine_memory(), cpu_bf16=_cpu_bf16()) if on_cpu and found.cuda else found


def threads() -> int:
    """Number of threads that torch computes with: ``OMP_NUM_THREADS``, else the cores available to the process."""
    value = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(value) if value.isdigit() and int(value) else len(os.sched_getaffinity(0))


def share_heap() -> None:
    """Makes all threads of this process allocate from one heap, with glibc and at most `NUM_WORKERS` threads.

    Free memory of one heap is of no use to another. sft lora of smollm2-135m, 1,835 tokens at a time in two threads,
    peaked at 2.7 GB instead of 3.1 GB, at the same speed (docs/performance.md). Call it before other threads start,
    since existing heaps stay. More threads might wait for each other; that was not measured. A user's
    ``MALLOC_ARENA_MAX`` takes precedence.
    """
    if threads() <= NUM_WORKERS and "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _cpu_bf16() -> bool:
    if (value := os.environ.get("FT_CPU_BF16", "")) in ("0", "1"):
        return value == "1"
    return _cpu_has("avx512_bf16", "amx_bf16")


def _machine_memory() -> int:
    """Bytes of physical memory, or the control group's limit if that is lower."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return memory


def _cpu_has(*flags: str) -> bool:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return False
    line = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "")
    return bool(set(flags) & set(line.split()))


def _cuda() -> tuple[tuple[int, int], int] | None:
    """Compute capability and memory in bytes of the first device, from the CUDA driver; None without one.

    None too if the installed torch was built without CUDA, since it then computes on the CPU.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not Path("/dev/nvidiactl").exists():
        return None
    if not torch_is_built_for("cuda"):
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    calls: tuple[Callable[[], int], ...] = (
        lambda: int(driver.cuInit(0)),
        lambda: int(driver.cuDeviceGet(ctypes.byref(device), 0)),
        # 75 and 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
        lambda: int(driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)),
        lambda: int(driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)),
        lambda: int(driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)),
    )
    return ((major.value, minor.value), total.value) if not any(call() for call in calls) else None


def _rocm(root: Path = Path("/")) -> tuple[tuple[int, int], int] | None:
    """The same of the first AMD GPU, from the kernel's driver, where torch was built for ROCm: torch calls it cuda."""
    hidden = "" in (os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("HIP_VISIBLE_DEVICES"))
    if hidden or not (root / "dev/kfd").exists() or not torch_is_built_for("hip"):
        return None
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties")
    for file in sorted(nodes, key=lambda file: int(file.parent.name)):
        if version := _number(file, "gfx_target_version"):  # such as 90402; 0 is a processor
            sizes = [_number(bank, "size_in_bytes") for bank in file.parent.glob("mem_banks/*/properties")]
            return (version // 10000, version // 100 % 100), max(sizes, default=0)
    return None


def _number(file: Path, name: str) -> int:
    found = re.search(rf"(?m)^{name} (\d+)$", file.read_text("utf-8"))
    return int(found[1]) if found else 0


def torch_is_built_for(platform: str, version_file: Path | None = None) -> bool:
    """Whether torch was built for ``cuda`` or ``hip``, by its file ``version.py``; torch is not imported.

    Args:
        platform: the name in the file.
        version_file: unset, that of the installed torch.
    """
    if version_file is None:
        found = find_spec("torch")
        version_file = Path(found.origin if found and found.origin else "torch").with_name("version.py")
    text = version_file.read_text("utf-8") if version_file.is_file() else ""
    value = re.search(rf"(?m)^{platform}\b[^=\n]*= (.+)$", text)
    return value is not None and value[1] != "None"
