"""The backend of a run: by its device, or by its name where it can be used there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from ftcore.resources.device_traits import DeviceTraits, plain
from ftcore.resources.hardware import Hardware

Write = Callable[..., Path]
CPU, GPU = Hardware(1 << 36), Hardware(1 << 36, cuda=(9, 0))


@dataclass(frozen=True, kw_only=True)
class Acme(Backend):
    """A stranger's; ``found`` is the device that it finds on this machine."""

    found: str = ""
    own: DeviceTraits | None = None

    def present(self, device: str) -> bool:
        return device == self.found

    def traits(self, plan: Plan) -> DeviceTraits:
        return self.own or Backend.traits(self, plan)

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


# ---- what a backend states of its device ----


@pytest.mark.parametrize(
    ("machine", "device", "name", "fast", "heap"),
    [
        (CPU, "cpu", "this CPU", {"float32"}, True),
        (Hardware(1 << 36, cpu_bf16=True), "cpu", "this CPU", {"float32", "bfloat16"}, True),
        (GPU, "cuda", "the GPU (compute capability 9.0)", {"float32", "bfloat16", "float16", "tf32"}, False),
        (
            Hardware(1 << 36, cuda=(7, 0)),
            "cuda",
            "the GPU (compute capability 7.0)",
            {"float32", "float16"},
            False,
        ),
        (CPU, "npu", "device npu", {"float32"}, False),
    ],
)
def test_traits_of_plain_torch(
    monkeypatch: pytest.MonkeyPatch, machine: Hardware, device: str, name: str, fast: set[str], heap: bool
) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: machine)
    assert plain(device) == DeviceTraits(name=name, memory=1 << 36, fast_dtypes=frozenset(fast), heap=heap)


def test_concurrent_micro_batches() -> None:
    """A thread for each of them at least, and gradients of a quarter of the parameters at most."""
    two = DeviceTraits(name="x", memory=1, workers=2)
    assert two.concurrent(threads=2, trained=25, parameters=100) == 2
    assert two.concurrent(threads=4, trained=0, parameters=100) == 2
    assert two.concurrent(threads=1, trained=25, parameters=100) == 1
    assert two.concurrent(threads=2, trained=26, parameters=100) == 1
    assert DeviceTraits(name="x", memory=1).concurrent(threads=9, trained=0, parameters=1) == 1


@pytest.mark.parametrize(
    ("text", "workers"),
    [
        ("", 2),
        ("tokens_per_pass: 64\n", 2),
        ("tokens_per_pass: false\n", 1),
        ("neftune_noise_alpha: 5\n", 1),
        ("lora_dropout: 0.1\n", 1),
        ("finetuning_type: full\n", 2),  # whether gradients fit is not known from options alone
        ("backend: reference\n", 1),
    ],
)
def test_options_decide_whether_a_cpu_runs_two_at_a_time(
    write_config: Write, built_in: Plugins, monkeypatch: pytest.MonkeyPatch, text: str, workers: int
) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: CPU)
    assert make_plan(write_config(text), plugins=built_in).traits.workers == workers


def test_a_strangers_traits_decide_precision_memory_and_passes(
    write_config: Write, plugins: Callable[..., Plugins], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: CPU)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    roomy = DeviceTraits(
        name="the NPU", memory=1 << 40, fast_dtypes=frozenset({"float32", "bfloat16"}), pass_tokens=1024, workers=3
    )
    text = "backend: fast\nper_device_train_batch_size: 8\ncutoff_len: 512\n"

    def planned(traits: DeviceTraits | None, *overrides: str) -> Plan:
        return make_plan(write_config(text), overrides, plugins=plugins(acme(own=traits)))

    plan = planned(roomy)
    assert (plan.precision.compute, plan.gradient_checkpointing) == ("bfloat16", False)
    assert plan.memory.note == "8 rows of 512 tokens, 1536 tokens at a time"  # a row for each of three
    assert plan.memory.terms["heap holes"] == 0
    assert planned(replace(roomy, workers=1)).memory.note == "8 rows of 512 tokens, 1024 tokens at a time"
    assert planned(replace(roomy, memory=1 << 20)).gradient_checkpointing
    with pytest.raises(UsageError) as error:
        planned(roomy, "fp16=true", "strict_precision=true")
    assert str(error.value) == (
        "command line: the NPU only emulates float16, many times slower; "
        "remove fp16, or remove strict_precision to train in float32"
    )
    assert planned(None).memory.note == "8 rows of 512 tokens"


def test_a_gpu_that_torch_cannot_use(write_config: Write, built_in: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(hardware, "detect", lambda: GPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = write_config()
    plan = make_plan(file, plugins=built_in)
    with pytest.raises(UsageError) as error:
        plan.backend.component.runtime(plan)
    assert str(error.value) == (
        f"{file}: this machine has the GPU (compute capability 9.0), and torch {torch.__version__} cannot use it; "
        "write use_cpu: true, or install a torch built for the GPU's driver"
    )


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_a_runtime_has_its_backends_name(write_config: Write, built_in: Plugins, name: str) -> None:
    """It is in checkpoints and in keys of caches."""
    plan = make_plan(write_config(backend=name, use_cpu=True), plugins=built_in)
    assert plan.backend.component.runtime(plan).name == name
