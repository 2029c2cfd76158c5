"""``ft plan --verbose``: the transforms of the model, and why the plan rules some out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ftcore.api.components import Backend
from ftcore.api.model_transform import Change, ModelTransform, Slot
from ftcore.api.plan import Plan
from ftcore.api.registry import Plugins
from ftcore.cli import main
from ftcore.cli.plan import model_transforms, print_transforms
from ftcore.config.planner import make_plan
from ftcore.resources import hardware
from ftcore.training.backend import BackendRuntime


class Folded(ModelTransform):
    """A stranger's, of its backend."""

    name: ClassVar[str] = "folded layers"
    summary: ClassVar[str] = "two layers as one"
    slot: ClassVar[Slot] = Slot.LAYERS

    def planned(self, plan: Plan) -> str:
        return "" if plan.precision.compute == "float32" else f"it is for float32, not for {plan.precision.compute}"

    def changes(self, context: Any) -> Iterable[Change]:
        raise NotImplementedError


class Faster(Folded):
    """A stranger's, by hook."""

    name: ClassVar[str] = "faster adapters"
    summary: ClassVar[str] = "adapters with fewer products"
    slot: ClassVar[Slot] = Slot.ADAPTERS

    def planned(self, plan: Plan) -> str:
        return ""


class OwnRuntime(BackendRuntime):
    def transforms(self) -> Sequence[ModelTransform]:
        return [Folded()]


class Own(Backend):
    def runtime(self, plan: Plan) -> Any:
        return OwnRuntime()


def test_transforms_of_a_stranger(
    write_config: Callable[..., Path],
    with_plugins: Callable[..., Plugins],
    hooks: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: hardware.Hardware(1 << 36, cpu_bf16=True))
    plugins = with_plugins(
        acme=hooks(ft_backends=lambda: [Own(name="own", summary="of a stranger")]),
        other=hooks(ft_model_transforms=lambda plan: [Faster()]),
    )
    for dtype, ruled_out in (("float32", ""), ("bfloat16", "it is for float32, not for bfloat16")):
        plan = make_plan(write_config(backend="own", bf16=dtype == "bfloat16"), plugins=plugins)
        found = [one for one in model_transforms(plan) if one["distribution"] in ("acme", "other")]
        first = {"name": "faster adapters", "distribution": "other", "summary": "adapters with fewer products"}
        second = {"name": "folded layers", "distribution": "acme", "summary": "two layers as one"}
        assert found == [first | {"ruled_out": ""}, second | {"ruled_out": ruled_out}]
    print_transforms([found[0], found[1] | {"ruled_out": "it is for float32"}])
    assert capsys.readouterr().out.splitlines() == [
        "model transforms",
        "  faster adapters         adapters with fewer products (other)",
        "  folded layers           not applied: it is for float32 (acme)",
    ]
    print_transforms([])
    assert capsys.readouterr().out == "model transforms\n  none\n"


def test_the_built_in_transforms(write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["plan", str(write_config()), *words])
        assert not end.value.code
        return capsys.readouterr().out

    plain, verbose = printed(), printed("--verbose")
    assert verbose.startswith(plain + "model transforms\n")
    listed = json.loads(printed("--verbose", "--json"))["model_transforms"]
    assert len(listed) == verbose.removeprefix(plain).count("\n") - 1
    assert all(one["name"] and one["summary"] and one["distribution"] for one in listed)
    assert "model_transforms" not in json.loads(printed("--json"))
