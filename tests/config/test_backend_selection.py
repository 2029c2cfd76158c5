"""The backend of a run: by its device, or by its name where it can be used there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ftcore.api.components import Backend
from ftcore.api.plan import Plan
from ftcore.api.registry import Plugins
from ftcore.config.planner import make_plan
from ftcore.config.serialization import as_dict
from ftcore.errors import UsageError
from ftcore.resources import hardware
from ftcore.resources.hardware import Hardware

Write = Callable[..., Path]
CPU, GPU = Hardware(1 << 36), Hardware(1 << 36, cuda=(9, 0))


@dataclass(frozen=True, kw_only=True)
class Acme(Backend):
    """A stranger's; ``found`` is the device that it finds on this machine."""

    found: str = ""

    def present(self, device: str) -> bool:
        return device == self.found

    def runtime(self, plan: Plan) -> Any:
        raise NotImplementedError


def acme(name: str = "fast", **fields: Any) -> Acme:
    return Acme(name=name, summary="of a stranger", **fields)


@pytest.fixture
def plugins(with_plugins: Callable[..., Plugins], hooks: Callable[..., Any]) -> Callable[..., Plugins]:
    """``plugins(backend, ...)``: the built-ins and a distribution acme with these backends."""
    return lambda *backends, **more: with_plugins(acme=hooks(ft_backends=lambda: backends), **more)


def chosen(file: Path, plugins: Plugins, overrides: Sequence[str] = ()) -> tuple[str, str]:
    plan = make_plan(file, overrides, plugins=plugins)
    assert as_dict(plan)["components"]["backend"] == plan.backend.full_name
    return plan.backend.full_name, plan.device


@pytest.mark.parametrize(
    ("machine", "text", "expected"),
    [
        (CPU, "", ("ftcore:cpu", "cpu")),
        (GPU, "", ("ftcore:cuda", "cuda")),
        (GPU, "use_cpu: true\n", ("ftcore:cpu", "cpu")),
        (GPU, "no_cuda: true\n", ("ftcore:cpu", "cpu")),
        (CPU, "backend: cpu\n", ("ftcore:cpu", "cpu")),
        (GPU, "backend: ftcore:cuda\n", ("ftcore:cuda", "cuda")),
        (CPU, "backend: reference\n", ("ftcore:reference", "cpu")),
        (GPU, "backend: reference\n", ("ftcore:reference", "cuda")),
        (GPU, "backend: reference\nuse_cpu: true\n", ("ftcore:reference", "cpu")),
    ],
)
def test_the_device_selects_the_backend_unless_the_file_does(
    write_config: Write, built_in: Plugins, monkeypatch: pytest.MonkeyPatch, machine: Hardware, text: str, expected: Any
) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: machine)
    assert chosen(write_config(text), built_in) == expected


@pytest.mark.parametrize(
    ("machine", "text", "message"),
    [
        (
            CPU,
            "backend: cuda\n",
            "run.yaml:6: backend 'cuda' cannot be used on cpu: it is for cuda; "
            "remove backend, or write backend: ftcore:cpu or ftcore:reference",
        ),
        (
            GPU,
            "backend: cpu\n",
            "run.yaml:6: backend 'cpu' cannot be used on cuda: it is for cpu; write use_cpu: true, or remove backend",
        ),
        (
            GPU,
            "backend: cuda\nuse_cpu: true\n",
            "run.yaml:6: backend 'cuda' cannot be used on cpu: it is for cuda; remove use_cpu, or remove backend",
        ),
        (
            CPU,
            "backend: cudda\n",
            "run.yaml:6: unknown backend 'cudda'; did you mean cuda or cpu?",
        ),
        (CPU, "backend: 3\n", "run.yaml:6: backend: 3 is not text"),
    ],
)
def test_a_backend_that_cannot_be_used(
    write_config: Write, built_in: Plugins, monkeypatch: pytest.MonkeyPatch, machine: Hardware, text: str, message: str
) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: machine)
    assert refusals(write_config(text), built_in) == [message]


def refusals(file: Path, plugins: Plugins) -> list[str]:
    with pytest.raises(UsageError) as error:
        make_plan(file, plugins=plugins)
    return str(error.value).replace(f"{file.parent}/", "").splitlines()


def test_two_backends_for_one_device_are_named(
    write_config: Write, plugins: Callable[..., Plugins], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: CPU)
    both = plugins(acme(devices=("cpu",)))
    assert refusals(write_config(), both) == [
        "run.yaml: a backend for cpu is registered by acme and ftcore; write the full name: acme:fast or ftcore:cpu"
    ]
    assert chosen(write_config("backend: fast\n"), both) == ("acme:fast", "cpu")
    assert chosen(write_config("backend: cpu\n"), both) == ("ftcore:cpu", "cpu")


def test_a_strangers_backend_without_devices_is_used_only_by_name(
    write_config: Write, plugins: Callable[..., Plugins], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: CPU)
    named = plugins(acme())
    assert chosen(write_config(), named) == ("ftcore:cpu", "cpu")
    assert chosen(write_config(), named, ["backend=acme:fast"]) == ("acme:fast", "cpu")


def test_a_strangers_device(
    write_config: Write, plugins: Callable[..., Plugins], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that only its backend can detect."""
    monkeypatch.setattr(hardware, "detect", lambda: CPU)
    absent, present = plugins(acme(devices=("npu",))), plugins(acme(devices=("npu",), found="npu"))
    assert chosen(write_config(), absent) == ("ftcore:cpu", "cpu")
    assert refusals(write_config("backend: fast\n"), absent) == [
        "run.yaml:6: backend 'fast' cannot be used on cpu: it is for npu; "
        "remove backend, or write backend: ftcore:cpu or ftcore:reference"
    ]
    assert chosen(write_config(), present) == ("acme:fast", "npu")
    assert chosen(write_config("use_cpu: true\n"), present) == ("ftcore:cpu", "cpu")
    assert chosen(write_config("backend: reference\n"), present) == ("ftcore:reference", "npu")
    monkeypatch.setattr(hardware, "detect", lambda: GPU)
    assert refusals(write_config(), present) == [
        "run.yaml: a backend for cuda or npu is registered by acme and ftcore; "
        "write the full name: acme:fast or ftcore:cuda"
    ]
    assert chosen(write_config("backend: fast\n"), present) == ("acme:fast", "npu")


def test_a_device_without_a_backend(
    write_config: Write, plugins: Callable[..., Plugins], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: GPU)
    bare = plugins(acme(), acme("slow", devices=("cpu",)), disabled=["ftcore/backends"])
    assert refusals(write_config(), bare) == ["run.yaml: a backend for cuda is not installed; write backend: acme:fast"]
    none = plugins(disabled=["ftcore/backends"])
    assert refusals(write_config(), none) == ["run.yaml: a backend for cuda is not installed"]
