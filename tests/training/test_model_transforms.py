"""Model transforms: order, comparison, report and undo, on transforms made here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ftcore.api.model_transform import Change, ModelTransform, NotComparableError, Output, Slot
from ftcore.errors import RunError, UsageError
from ftcore.training.backend import BackendRuntime
from ftcore.training.model_transforms import apply, patching
from ftcore.training.model_transforms.apply import ModelTransforms, RegisteredTransform, registered_transforms
from ftcore.training.model_transforms.comparing import apply_changes

X = torch.linspace(-2, 2, 12).view(3, 4)


class Scaled:
    """A forward whose results are multiplied."""

    factor: float

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x) * self.factor  # type: ignore[misc]


class Scaling(Change):
    """Multiplies a module's results."""

    kind = "modules"

    def __init__(self, module: nn.Module, factor: float, log: list[str] | None = None, compared: bool = True) -> None:
        self.module, self.factor, self.log, self.compared = module, factor, [] if log is None else log, compared

    def apply(self) -> None:
        self.log.append(f"apply {self.factor}")
        # a class of its own, so that a module can be scaled twice
        mixin = type("Scaled", (Scaled,), {})
        self.restore = patching.replace_class(self.module, mixin, factor=self.factor)

    def undo(self) -> None:
        self.log.append(f"undo {self.factor}")
        self.restore()

    def outputs(self) -> Sequence[Output]:
        return [Output("the module", self.module(X), 1e-5)] if self.compared else ()


class Transform(ModelTransform):
    """Scales all modules of the context's model by the first factor that is accepted."""

    name, summary, slot = "scaled", "for tests", Slot.LAYERS

    def __init__(self, *factors: float, name: str = "scaled", slot: Slot = Slot.LAYERS, why: str = "") -> None:
        self.factors, self.why = factors, why
        kind: Any = self
        kind.name, kind.slot = name, slot

    def applies(self, context: Any) -> str:
        return self.why

    def changes(self, context: Any) -> Iterator[Change]:
        for module in context.model:
            for factor in self.factors:
                change = Scaling(module, factor, context.log)
                yield change
                if not change.refused:
                    break


class Context:
    """Of two linear layers."""

    plan: Any = None
    scorer: Any = None
    backend: Any = None
    executor: Any = None
    noise: Any = None
    reports: Any = None
    train_dataset: Any = None
    eval_dataset: Any = None

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.log: list[str] = []

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()


def run(context: Context, *transforms: tuple[ModelTransform, str]) -> ModelTransforms:
    return ModelTransforms(context, [RegisteredTransform(*one) for one in transforms])


def state(model: nn.Module) -> list[tuple[type, set[str]]]:
    return [(type(module), set(vars(module))) for module in model.modules()]


def test_a_change_that_computes_something_else_is_undone_and_another_way_is_tried() -> None:
    context = Context()
    expected, before = context.model(X), state(context.model)
    transforms = run(context, (Transform(1.1, 1.0), "ftcore"))
    transforms.apply()
    (applied,) = transforms.applied
    assert [change.refused for change in applied.refused] == ["the module computes other results"] * 2
    assert transforms.line == "scaled (2 modules)"
    assert context.log == ["apply 1.1", "undo 1.1", "apply 1.0"] * 2
    assert [isinstance(module, Scaled) for module in context.model] == [True, True]
    transforms.undo()
    assert context.log[-2:] == ["undo 1.0", "undo 1.0"]
    assert state(context.model) == before
    assert torch.equal(context.model(X), expected)
    assert transforms.line == ""


def test_rounding_is_not_another_result() -> None:
    context = Context()
    transforms = run(context, (Transform(1 + 1e-6), "ftcore"))
    transforms.apply()
    assert len(transforms.applied[0].kept) == 2


def test_a_change_without_outputs_is_not_compared() -> None:
    model = Context().model
    kept, refused = apply_changes([Scaling(model[0], 2.0, compared=False)])
    assert (len(kept), refused) == (1, [])
    assert torch.equal(model[0](X), 2 * Context().model[0](X))


def fails(before: Exception | None, after: Exception | None) -> tuple[str, bool]:
    """The reason for which a change is refused whose outputs raise these errors; whether its module is as it was."""
    model = Context().model

    class Failing(Scaling):
        def outputs(self) -> Sequence[Output]:
            if (error := after if isinstance(self.module, Scaled) else before) is not None:
                raise error
            return super().outputs()

    _, (change,) = apply_changes([Failing(model[0], 1.0)])
    return change.refused, type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (TypeError("unexpected argument"), None, "TypeError: unexpected argument"),
        (NotComparableError("there is one layer only"), None, "there is one layer only"),
        (None, MemoryError("no room\nfor it"), "MemoryError: no room for it"),
        (None, RuntimeError("short\n\nlong"), "RuntimeError: short"),
    ],
)
def test_an_error_refuses_a_change(before: Any, after: Any, why: str) -> None:
    assert fails(before, after) == (why, True)


def test_other_numbers_of_outputs_refuse_a_change() -> None:
    model = Context().model

    class Losing(Scaling):
        def outputs(self) -> Sequence[Output]:
            return [*super().outputs()] * (1 if isinstance(self.module, Scaled) else 2)

    _, (change,) = apply_changes([Losing(model[0], 1.0)])
    assert change.refused == "the number of results differs"


def test_slots_decide_the_order_and_what_is_skipped_says_why() -> None:
    context = Context()
    late, early = Transform(1.0, name="late", slot=Slot.CACHE), Transform(1.0, name="early", slot=Slot.ADAPTERS)
    never = Transform(1.0, name="never", slot=Slot.RECOMPUTE, why="no layer has an adapter")
    transforms = run(context, (late, "ftcore"), (never, "acme"), (early, "acme"))
    transforms.apply(until=Slot.CAPABILITIES)
    assert transforms.line == "early (2 modules) of acme"
    transforms.apply()
    assert transforms.line == "early (2 modules) of acme, late (2 modules)"
    names = [(one.registered.transform.name, one.skipped) for one in transforms.applied]
    assert names == [("early", ""), ("never", "no layer has an adapter"), ("late", "")]


def test_an_error_of_a_plugins_transform_names_it() -> None:
    class Broken(Transform):
        def applies(self, context: Any) -> str:
            raise KeyError("layers")

    with pytest.raises(RunError) as caught:
        run(Context(), (Broken(name="broken"), "acme")).apply()
    assert str(caught.value) == "model transform 'broken' of acme failed: KeyError: 'layers'"
    with pytest.raises(KeyError):
        run(Context(), (Broken(name="broken"), "ftcore")).apply()


# ---- where transforms come from ----


@pytest.fixture
def registered(with_plugins: Any, hooks: Any) -> Callable[..., list[tuple[str, str]]]:
    """``registered(backend=..., acme=...)``: name and distribution of the transforms with these of a backend and of
    plugins, without the core's."""

    def make(backend: Sequence[Any] = (), **plugins: Any) -> list[tuple[str, str]]:
        given = {name: hooks(ft_model_transforms=function) for name, function in plugins.items()}
        plan: Any = SimpleNamespace(backend=SimpleNamespace(full_name="fast:npu"), plugins=with_plugins(**given))

        class Runtime(BackendRuntime):
            def transforms(self) -> Sequence[ModelTransform]:
                return backend

        found = registered_transforms(plan, Runtime())
        own = {kind.name for kind in apply.CORE}
        return [
            (one.transform.name, one.distribution) for one in found if getattr(one.transform, "name", "") not in own
        ]

    return make


def test_transforms_of_plugins_come_after_those_of_the_backend(registered: Any) -> None:
    found = registered(
        [Transform(name="fused"), Transform(name="recomputed", slot=Slot.RECOMPUTE)],
        acme=lambda plan: [Transform(name="norms"), Transform(name="first", slot=Slot.ADAPTERS)],
        bravo=lambda: [Transform(name="gates")],
    )
    assert found[:2] == [("first", "acme"), ("recomputed", "fast")]
    assert found[2] == ("fused", "fast")
    assert sorted(found[3:]) == [("gates", "bravo"), ("norms", "acme")]


def test_a_name_belongs_to_one_transform(registered: Any) -> None:
    with pytest.raises(UsageError) as caught:
        registered([Transform(name="fused")], acme=lambda: [Transform(name="fused")])
    assert str(caught.value) == (
        "two model transforms have the name 'fused': of fast and of acme; "
        "disable one of the plugins with FT_DISABLE_PLUGINS"
    )


def test_a_hook_returns_transforms(registered: Any) -> None:
    with pytest.raises(UsageError) as caught:
        registered(acme=lambda: [3])
    assert str(caught.value) == (
        "ft_model_transforms of acme returns int; return objects of ftcore.api.model_transform.ModelTransform"
    )
    with pytest.raises(RunError) as failed:
        registered(acme=lambda: 1 / 0)
    assert str(failed.value) == (
        "hook ft_model_transforms of plugin acme/plugin failed: ZeroDivisionError: division by zero; "
        "disable the plugin with FT_DISABLE_PLUGINS=acme/plugin"
    )


# ---- patching ----


def test_a_replaced_class_keeps_names_hooks_and_ties() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.append(model[0])
    names, seen = list(model.state_dict()), []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    undo = patching.replace_class(model[0], Scaled, factor=2.0)
    assert isinstance(model[2], nn.Linear)
    assert type(model[0]).__name__ == "Scaled_Linear"
    assert list(model.state_dict()) == names
    model(X)
    assert seen == [1, 1]
    undo()
    assert type(model[0]) is nn.Linear
    assert "factor" not in vars(model[0])


def test_attributes_that_were_there_come_back() -> None:
    layer: Any = nn.Linear(4, 4)
    layer.factor = 3.0
    undo = patching.replace_class(layer, Scaled, factor=2.0)
    assert layer.factor == 2.0
    undo()
    assert layer.factor == 3.0


def test_a_forward_comes_back() -> None:
    layer = nn.Linear(4, 4)
    expected, own = layer(X), layer.forward
    undo = patching.replace_forward(layer, lambda x: own(x) + 1)
    assert torch.equal(layer(X), expected + 1)
    undo()
    assert "forward" not in vars(layer)
    assert torch.equal(layer(X), expected)


def test_only_attributes_that_a_library_set_come_back() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].flag = False

    def library() -> None:
        for layer in model:
            layer.flag = True

    undo = patching.record_attributes(model, library)
    model.eval()
    undo()
    assert model[0].flag is False
    assert "flag" not in vars(model[1])
    assert not model[0].training


# ---- in a run ----


def test_a_strangers_transform_of_a_run_is_applied_and_reported(
    run_of: Any, tokens: Any, with_plugins: Any, hooks: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the built-in ones of its slot, by the name of its distribution; what it refuses is not reported."""
    from ft_plugins.stages.sft.objective import NextToken
    from ftcore.training.trainer import Trainer

    class Head(Transform):
        def changes(self, context: Any) -> Iterator[Change]:
            yield Scaled64(context.model.get_output_embeddings(), self.factors[0])

    class Scaled64(Scaling):
        def outputs(self) -> Sequence[Output]:
            return [Output("the head", self.module(torch.linspace(-1, 1, 64)[None]), 1e-5)]

    transforms = [Head(1.0, name="head"), Head(2.0, name="doubled head")]
    plugins = with_plugins(acme=hooks(ft_model_transforms=lambda plan: transforms))
    run = run_of(finetuning_type="full")
    run.plan = dataclasses.replace(run.plan, plugins=plugins)
    trainer = Trainer(run, NextToken(), train=tokens([9, 5]))
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "model transforms: packed attention, shared prefixes, fused loss, "
        "fused layers (2 gates, 14 linears, 5 norms), head (1 modules) of acme, pruned last layer"
    ) in said
    (doubled,) = [one for one in trainer.transforms.applied if one.registered.transform is transforms[1]]
    assert [change.refused for change in doubled.refused] == ["the head computes other results"]
    trainer.transforms.undo()
    assert {type(module).__module__.partition(".")[0] for module in run.model.modules()} <= {"transformers", "torch"}
    assert not any("_" in type(module).__name__ for module in run.model.modules())
