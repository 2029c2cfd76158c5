"""Which dtypes a run has, and whether activations are recomputed: by what the file asks for and the machine has."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ftcore.api.plan import Plan
from ftcore.config.planner import make_plan
from ftcore.config.validation import core
from ftcore.errors import UsageError
from ftcore.resources import hardware
from ftcore.resources.hardware import Hardware

OLD_CPU = Hardware(memory=16 << 30)
NEW_CPU = Hardware(memory=16 << 30, cpu_bf16=True)
V100 = Hardware(memory=32 << 30, cuda=(7, 0))
H100 = Hardware(memory=80 << 30, cuda=(9, 0))
EMULATED = "float32 instead of bfloat16: this CPU only emulates bfloat16, many times slower"
NO_FP16 = "float32 instead of float16: this CPU only emulates float16, many times slower"
V100_EMULATES = "the GPU (compute capability 7.0) only emulates bfloat16, many times slower"


@pytest.fixture
def plan_on(monkeypatch: pytest.MonkeyPatch, write_config: Any, built_in: Any) -> Any:
    """``plan_on(machine, **options)``."""

    def make(machine: Hardware, **options: Any) -> Plan:
        monkeypatch.setattr(hardware, "detect", lambda: machine)
        return make_plan(write_config(**options), plugins=built_in)

    return make


@pytest.mark.parametrize(
    ("machine", "options", "compute", "trained", "reason"),
    [
        (OLD_CPU, {}, "float32", "float32", ""),
        (NEW_CPU, {}, "bfloat16", "float32", ""),
        (V100, {}, "float32", "float32", ""),
        (H100, {}, "bfloat16", "float32", ""),
        (H100, {"bf16": False}, "float32", "float32", ""),
        (OLD_CPU, {"bf16": True}, "float32", "float32", EMULATED),
        (V100, {"bf16": True}, "float32", "float32", f"float32 instead of bfloat16: {V100_EMULATES}"),
        (V100, {"fp16": True}, "float16", "float32", ""),
        (OLD_CPU, {"fp16": True}, "float32", "float32", NO_FP16),
        (H100, {"pure_bf16": True}, "bfloat16", "bfloat16", ""),
        (NEW_CPU, {"pure_bf16": True, "bf16": True}, "bfloat16", "bfloat16", ""),
        (OLD_CPU, {"pure_bf16": True}, "float32", "float32", EMULATED),
    ],
)  # fmt: skip
def test_dtypes(machine: Hardware, options: Any, compute: str, trained: str, reason: str, plan_on: Any) -> None:
    """Trained parameters are float32 unless the file says otherwise; a change of precision is one line."""
    plan = plan_on(machine, **options)
    found = (plan.precision.compute, plan.precision.trained, plan.precision.reason)
    assert found == (compute, trained, reason)
    assert [line for line in plan.warnings if line == reason] == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("machine", "options", "message"),
    [
        (OLD_CPU, {"bf16": True, "strict_precision": True}, "this CPU only emulates bfloat16, many times slower"),
        (
            OLD_CPU,
            {"pure_bf16": True, "strict_precision": True},
            "remove pure_bf16, or remove strict_precision to train in fl",
        ),
        (V100, {"bf16": True, "strict_precision": True}, V100_EMULATES),
        (
            OLD_CPU,
            {"fp16": True, "strict_precision": True},
            "this CPU only emulates float16, many times slower; remove fp16",
        ),
        (H100, {"fp16": True, "bf16": True}, "bf16 and fp16 are both true; keep one"),
        (H100, {"fp16": True, "pure_bf16": True}, "pure_bf16 and fp16 are both true; keep one"),
        (H100, {"bf16": False, "pure_bf16": True}, "pure_bf16 is true and bf16 false; keep one"),
    ],
)
def test_refusals(machine: Hardware, options: Any, message: str, plan_on: Any) -> None:
    with pytest.raises(UsageError) as caught:
        plan_on(machine, **options)
    assert message in str(caught.value)


def test_activations_are_recomputed_only_where_the_estimate_needs_it(plan_on: Any) -> None:
    """The border is nine tenths of the memory, and an explicit word wins on either side."""
    need = plan_on(Hardware(memory=1 << 40), finetuning_type="full", bf16=False).memory.total
    roomy = Hardware(memory=round(need / core.MEMORY_SHARE) + 1)
    tight = dataclasses.replace(roomy, memory=round(need / core.MEMORY_SHARE) - 2)
    for machine, wanted, expected in (
        (roomy, ..., False),
        (tight, ..., True),
        (roomy, False, True),
        (tight, True, False),
    ):
        plan = plan_on(machine, finetuning_type="full", bf16=False, disable_gradient_checkpointing=wanted)
        assert plan.gradient_checkpointing is expected
        assert (plan.memory.total < need) is expected
        assert ("recomputed" in plan.memory.note) is expected
