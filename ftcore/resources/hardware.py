"""What the machine can do, found without importing torch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NUM_WORKERS = 2
"""How many work side by side (`ftcore.training.parallel.cpu_threads.pool`); where there are more threads, each has its
share of them."""
_M_ARENA_MAX = -8
"""glibc, malloc.h."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Facts that a plan depends on.

    Args:
        memory: bytes of the memory that a model would lie in: of the first GPU, else of the machine.
        cuda: compute capability of the first CUDA device, such as ``(9, 0)``; None without one.
        cpu_bf16: whether the processor multiplies bfloat16 itself (AVX512-BF16 or AMX); AVX2 emulates it, ten times
            slower than float32 (measured: 2.8 to 5.4 GF/s against 36 per core on Zen 2).
    """

    memory: int
    cuda: tuple[int, int] | None = None
    cpu_bf16: bool = False

    @property
    def bf16(self) -> bool:
        """Whether bfloat16 is computed rather than emulated."""
        return self.cuda >= (8, 0) if self.cuda else self.cpu_bf16

    @property
    def name(self) -> str:
        """For messages."""
        return f"the GPU (compute capability {self.cuda[0]}.{self.cuda[1]})" if self.cuda else "this CPU"


@cache
def detect() -> Hardware:
    """The machine that this process runs on. CUDA was not tried on a GPU here: none was there.

    ``FT_CPU_BF16`` (0 or 1) overrules what the processor says of bfloat16: for tests, which must give the same numbers
    everywhere, and for virtual machines that hide it.
    """
    if gpu := _cuda():
        return Hardware(memory=gpu[1], cuda=gpu[0])
    return Hardware(memory=_machine_memory(), cpu_bf16=_cpu_bf16())


def machine(on_cpu: bool) -> Hardware:
    """The same, where a run is to leave the GPU alone."""
    found = detect()
    return Hardware(memory=_machine_memory(), cpu_bf16=_cpu_bf16()) if on_cpu and found.cuda else found


def threads() -> int:
    """How many a process computes with, as torch takes them: ``OMP_NUM_THREADS``, else the cores that it may use."""
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(told) if told.isdigit() and int(told) else len(os.sched_getaffinity(0))


def share_heap() -> None:
    """All threads of this process allocate from one heap, where they are few and glibc knows how.

    What is free in one heap is of no use to another one. sft lora of smollm2-135m, 1,835 tokens at a time in two
    threads, peaked at 2.7 GB instead of 3.1 in the same time (docs/performance.md). Before there are other threads:
    a heap that is there stays. More threads than `NUM_WORKERS` might wait for each other; that was not measured. Who
    sets glibc's own ``MALLOC_ARENA_MAX`` has chosen.
    """
    if threads() <= NUM_WORKERS and "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _cpu_bf16() -> bool:
    if (told := os.environ.get("FT_CPU_BF16", "")) in ("0", "1"):
        return told == "1"
    return _cpu_has("avx512_bf16", "amx_bf16")


def _machine_memory() -> int:
    """Bytes of physical memory, or of the control group's limit where that is lower."""
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
    """Capability and bytes of the first device, asked of the driver itself; None without one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not Path("/dev/nvidiactl").exists():
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
