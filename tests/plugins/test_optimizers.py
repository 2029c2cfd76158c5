"""AdamW and SGD are torch's, with our options; every further name of transformers is made as its Trainer does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ftcore.api.plan import Plan
from ftcore.config.hf_training_arguments import training_fields
from ftcore.config.planner import make_plan
from ftcore.errors import UsageError
from ftcore.resources import hardware

NAMES = training_fields()["optim"].choices
STEPS_IN_BACKWARD = {"lomo", "adalomo"}


@pytest.fixture
def plan_of(tiny_model_dir: Path) -> Any:
    def make(**values: Any) -> Plan:
        return make_plan(None, values={"model_name_or_path": str(tiny_model_dir)} | values)

    return make


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan made here is made for a GPU."""
    monkeypatch.setattr(hardware, "detect", lambda: hardware.Hardware(memory=80 << 30, cuda=(9, 0)))


def group(*values: float, lr: float = 0.1, decay: float = 0.0) -> tuple[torch.nn.Parameter, list[dict[str, Any]]]:
    weight = torch.nn.Parameter(torch.tensor(values))
    return weight, [{"params": [weight], "lr": lr, "weight_decay": decay}]


@pytest.mark.parametrize("name", ["adamw", "adamw_torch", "adamw_torch_fused", None])
def test_every_name_makes_a_fused_adamw(name: str | None, plan_of: Any) -> None:
    values = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6} | ({"optim": name} if name else {})
    plan = plan_of(**values)
    _, groups = group(1.0, 1.0, 1.0, lr=0.5, decay=0.25)
    optimizer = plan.optimizer.component.create(plan, groups)
    assert type(optimizer) is torch.optim.AdamW
    made = optimizer.param_groups[0]
    found = [made[key] for key in ("lr", "weight_decay", "betas", "eps", "fused")]
    assert found == [0.5, 0.25, (0.8, 0.95), 1e-6, True]
    assert plan.optimizer.component.state_bytes == 8


def test_one_step_by_hand(plan_of: Any) -> None:
    """The first step is the learning rate, against the gradient's sign, after decay."""
    plan = plan_of()
    weight, groups = group(1.0, -2.0, decay=0.5)
    optimizer = plan.optimizer.component.create(plan, groups)
    weight.grad = torch.tensor([3.0, -0.01])
    optimizer.step()
    assert weight.tolist() == pytest.approx([1 - 0.05 - 0.1, -2 + 0.1 + 0.1], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({}, 0.0),
        ({"sgd_momentum": 0.5}, 4.0),
        ({"optim_args": "momentum=0.5, dampening=0"}, 4.0),
        ({"sgd_momentum": 0.5, "sgd_nesterov": True}, 4.0),
        ({"optim_args": "momentum=0.5,nesterov=true"}, 4.0),
    ],
)
def test_sgd_by_hand(options: dict[str, Any], state: float, plan_of: Any) -> None:
    """Two steps with gradient 2 and decay 0.5: velocity v = m v + g, weight w -= lr v (with Nesterov g + m v)."""
    plan = plan_of(optim="sgd", **options)
    weight, groups = group(1.0, decay=0.5)
    optimizer = plan.optimizer.component.create(plan, groups)
    by_hand, velocity = 1.0, 0.0
    momentum, nesterov = (0.5 if options else 0.0), "nesterov" in str(options)
    for _ in range(2):
        weight.grad = torch.tensor([2.0])
        optimizer.step()
        slope = 2.0 + 0.5 * by_hand
        velocity = momentum * velocity + slope
        by_hand -= 0.1 * (slope + momentum * velocity if nesterov else velocity)
    assert weight.tolist() == [pytest.approx(by_hand, rel=1e-6)]
    assert plan.optimizer.component.state_bytes == state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim_args": "momentum"}, "optim_args: value error, expected name=value, comma separated, found 'momentum'"),
        ({"optim_args": "speed=3"}, "optim_args of sgd are momentum, dampening and nesterov, not speed"),
        (
            {"optim_args": "momentum=0.9", "sgd_momentum": 0.5},
            "excludes sgd_momentum and sgd_nesterov: remove one of them",
        ),
    ],
)
def test_sgd_refuses(options: dict[str, Any], message: str, plan_of: Any) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of(optim="sgd", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_transformers_is_offered(name: str, plan_of: Any, gpu: None) -> None:
    """It plans, or says which package to install; nothing else."""
    try:
        plan = plan_of(optim=name)
    except UsageError as error:
        for problem in error.problems:
            assert problem.message.startswith(f"optimizer {name} needs ")
            assert problem.hint.startswith("pip install ")
        return
    assert name in (plan.optimizer.component.name, *plan.optimizer.component.aliases)


def test_a_missing_package_is_named_with_its_cure(plan_of: Any) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of(optim="adamw_anyprecision")
    assert str(caught.value) == (
        "command line: optimizer adamw_anyprecision needs torchdistx, which is not installed; "
        "pip install git+https://github.com/pytorch/torchdistx"
    )


def test_paged_states_need_a_gpu(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(hardware, "detect", lambda: hardware.Hardware(memory=8 << 30))
    with pytest.raises(UsageError) as caught:
        plan_of(optim="paged_adamw_8bit")
    assert str(caught.value) == (
        "command line: optimizer paged_adamw_8bit needs a GPU, and this run has none; write optim: adamw_8bit"
    )


def by_name(name: str, plan_of: Any) -> Plan:
    """The plan, or the test is skipped because the optimizer's package is not here, or is of no use on this machine."""
    try:
        return plan_of(optim=name, learning_rate=1e-3)
    except UsageError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of the packages themselves
@pytest.mark.parametrize("name", NAMES)
def test_what_is_installed_makes_a_step(name: str, plan_of: Any, tiny_model_dir: Path) -> None:
    """On a real model: transformers' own class and numbers, and every weight that has a gradient moves."""
    from transformers import AutoModelForCausalLM

    if name in STEPS_IN_BACKWARD or name.endswith("layerwise"):
        pytest.skip("steps inside the backward pass: tests/training/test_optimizers_run.py")
    plan = by_name(name, plan_of)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    groups = [{"params": list(model.parameters()), "lr": 1e-3, "weight_decay": 0.0}]
    optimizer = plan.optimizer.component.create_for(plan, model, groups)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(8):  # the first ones of RAdam move nothing
        model(input_ids=torch.arange(3, 90)[None], labels=torch.arange(3, 90)[None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    assert [key for key in after if torch.equal(after[key], before[key])] == []
    assert all(tensor.isfinite().all() for tensor in after.values())


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("rmsprop", "momentum=0.5,alpha=0.8,centered=true", {"momentum": 0.5, "alpha": 0.8, "centered": True}),
        ("adagrad", "lr_decay=0.25", {"lr_decay": 0.25}),
        ("adafactor", None, {"relative_step": False, "scale_parameter": False}),
        ("lion_32bit", None, {"betas": (0.5, 0.75)}),
    ],
)
def test_arguments_arrive(name: str, arguments: str | None, expected: dict[str, Any], plan_of: Any) -> None:
    options = {"optim_args": arguments} if arguments else {}
    betas = {"adam_beta1": 0.5, "adam_beta2": 0.75} if "betas" in expected else {}
    if "betas" in expected:
        pytest.importorskip("bitsandbytes")
    plan = plan_of(optim=name, **options, **betas)
    optimizer = plan.optimizer.component.create(plan, group(1.0)[1])
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_options_of_another_are_named(plan_of: Any) -> None:
    ignored = plan_of(optim="adafactor", adam_beta1=0.5).ignored
    assert len(ignored) == 1
    assert ignored[0].startswith("command line: ignored: adam_beta1 is an option of optimizer adamw and ")
