"""Detection of hardware without torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ftcore.resources import hardware

VERSION = "from typing import Optional\n__version__ = '9.9'\ncuda: Optional[str] = {}\nhip: Optional[str] = {}\n"


@pytest.mark.parametrize(
    ("text", "built"),
    [
        (VERSION.format("None", "None"), (False, False)),
        (VERSION.format("'12.8'", "None"), (True, False)),
        (VERSION.format("None", "'6.4.43482'"), (False, True)),
        ("cuda = None\n", (False, False)),
        ("__version__ = '9.9'\n", (False, False)),
    ],
)
def test_what_torch_was_built_for(tmp_path: Path, text: str, built: tuple[bool, bool]) -> None:
    file = tmp_path / "version.py"
    file.write_text(text)
    assert (hardware.torch_is_built_for("cuda", file), hardware.torch_is_built_for("hip", file)) == built


def test_the_installed_torch_is_read_right(tmp_path: Path) -> None:
    assert hardware.torch_is_built_for("cuda") is (torch.version.cuda is not None)
    assert hardware.torch_is_built_for("hip") is (torch.version.hip is not None)
    assert not hardware.torch_is_built_for("cuda", tmp_path / "absent.py")


def test_an_amd_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as the kernel's driver amdkfd writes them: a processor is node 0, GPUs follow."""
    nodes = tmp_path / "sys/class/kfd/kfd/topology/nodes"
    for node, version, banks in ((0, 0, [1 << 38]), (2, 110000, [1 << 34]), (10, 90402, [1 << 37]), (1, 90402, [9, 8])):
        for number, size in enumerate(banks):
            bank = nodes / str(node) / "mem_banks" / str(number)
            bank.mkdir(parents=True)
            (bank / "properties").write_text(f"heap_type 1\nsize_in_bytes {size}\nflags 0\n")
        (nodes / str(node) / "properties").write_text(
            f"cpu_cores_count 0\ngfx_target_version {version}\nvendor_id 4098\n"
        )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "torch_is_built_for", lambda platform: platform == "hip")
    assert hardware._rocm(tmp_path) is None
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    assert hardware._rocm(tmp_path) == ((9, 4), 9)
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
    assert hardware._rocm(tmp_path) is None
    monkeypatch.delenv("HIP_VISIBLE_DEVICES")
    monkeypatch.setattr(hardware, "torch_is_built_for", lambda platform: False)
    assert hardware._rocm(tmp_path) is None


def test_devices_in_the_order_of_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, devices in (
        (hardware.Hardware(1), ("cpu",)),
        (hardware.Hardware(1, cuda=(9, 0)), ("cuda", "cpu")),
    ):
        monkeypatch.setattr(hardware, "detect", lambda machine=machine: machine)
        assert hardware.devices() == devices
