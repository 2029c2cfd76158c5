"""Detection of hardware without torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ftcore.resources import hardware


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("from typing import Optional\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", True),
        ("from typing import Optional\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", False),
        ("cuda = None\n", True),
        ("__version__ = '9.9'\n", False),
    ],
)
def test_what_torch_was_built_for(tmp_path: Path, text: str, without: bool) -> None:
    file = tmp_path / "version.py"
    file.write_text(text)
    assert hardware.torch_is_without_cuda(file) is without


def test_the_installed_torch_is_read_right(tmp_path: Path) -> None:
    assert hardware.torch_is_without_cuda() is (torch.version.cuda is None)
    assert not hardware.torch_is_without_cuda(tmp_path / "absent.py")


def test_devices_in_the_order_of_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, devices in (
        (hardware.Hardware(1), ("cpu",)),
        (hardware.Hardware(1, cuda=(9, 0)), ("cuda", "cpu")),
    ):
        monkeypatch.setattr(hardware, "detect", lambda machine=machine: machine)
        assert hardware.devices() == devices
