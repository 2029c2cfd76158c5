"""Threads of a run share one heap, where they are few."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, sys, threading
from ftcore.resources import hardware
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
@pytest.mark.parametrize(
    ("threads", "told", "heaps"), [(1, {}, 1), (2, {}, 1), (3, {}, 4), (2, {"MALLOC_ARENA_MAX": "3"}, 3)]
)
def test_few_threads_share_one(threads: int, told: dict[str, str], heaps: int, tmp_path: Path) -> None:
    """Unless the user said how many there are to be."""
    file = tmp_path / "info"
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | told
    words = [sys.executable, "-c", PROGRAM, str(threads), str(file)]
    subprocess.run(words, check=True, timeout=60, env=environment)
    assert file.read_text(encoding="utf-8").count("<heap nr=") == heaps
