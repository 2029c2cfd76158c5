"""Threads of a run share one heap, where they are few."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, sys, threading
from ftcore import hardware
hardware.threads = lambda: int(sys.argv[1])
hardware.share_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
barrier = threading.Barrier(3)
def take():
    libc.malloc(100_000)
    barrier.wait()
taking = [threading.Thread(target=take) for _ in range(3)]
[one.start() for one in taking]
[one.join() for one in taking]
libc.malloc_info(0, ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w")))
libc.fflush(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has such heaps")
@pytest.mark.parametrize(("threads", "heaps"), [(1, 1), (2, 1), (3, 4)])
def test_few_threads_share_one(threads: int, heaps: int, tmp_path: Path) -> None:
    file = tmp_path / "info"
    subprocess.run([sys.executable, "-c", PROGRAM, str(threads), str(file)], check=True, timeout=60)
    assert file.read_text(encoding="utf-8").count("<heap nr=") == heaps
