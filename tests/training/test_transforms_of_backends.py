"""Every transform of the core and of the built-in backends, on several families: it changes nothing but rounding.

A new transform needs an entry in `CASES`, which says how it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ft_plugins.backends import ft_backends
from ftcore.api.model_transform import Slot
from ftcore.training.backend import BackendRuntime
from ftcore.training.batching.collators import collate
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.model_transforms.apply import ModelTransforms, RegisteredTransform, registered_transforms
from ftcore.training.step.executor import SequentialExecutor

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft 0.21's
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # dynamo looks at it
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a:UserWarning"),  # in transformers' experts
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SHAPE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "initializer_range": 0.2}
SHAPE |= {"eos_token_id": 1, "bos_token_id": 2}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen3": {},  # norms of queries and keys
    "gemma2": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},  # offset
    "mixtral": {"num_local_experts": 4},
}


@dataclass
class Case:
    """How a transform is asked for.

    Args:
        options: of the plan.
        models: families to which it applies.
        prepare: makes the model one that it applies to.
        bits: whether it changes no bit.
        slow: whether it takes seconds.
    """

    options: dict[str, Any] = field(default_factory=dict)
    models: frozenset[str] = frozenset(FAMILIES)
    prepare: Callable[[Any], Any] = lambda model: model
    bits: bool = False
    slow: bool = False


def with_lora(model: Any) -> Any:
    """Adapters that do something."""
    from peft import LoraConfig, get_peft_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    dtype = model.dtype
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=names)).to(dtype)
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.1)
    return model


def half_frozen(model: Any) -> Any:
    """The first two layers and the embedding."""
    model.requires_grad_(False)
    model.model.layers[2].requires_grad_(True)
    return model


CASES = {
    "fused LoRA": Case(prepare=with_lora),
    "gradient checkpointing": Case(
        {"disable_gradient_checkpointing": False, "gradient_checkpointing": True}, bits=True
    ),
    "packed attention": Case(),
    "fused layers": Case(),
    "pruned last layer": Case(models=frozenset({"llama", "qwen3"})),
    "compiled layers": Case({"torch_compile_backend": "aot_eager"}, slow=True),
    "cached frozen layers": Case({"cache_frozen_prefix": True, "finetuning_type": "freeze"}, prepare=half_frozen),
}

CLOSE = {torch.float32: 2e-5, torch.bfloat16: 0.2}
"""Largest difference of a loss or gradient; in bfloat16 that of two orders of rounding, through three layers."""


class Rows:
    """The training rows of a context."""

    def __init__(self) -> None:
        self.lengths = np.array([7, 5])

    def __len__(self) -> int:
        return 2


class Context:
    """A run with a model made here."""

    args: Any = None
    noise: Any = None
    eval_dataset: Any = None

    def __init__(self, plan: Any, model: Any, backend: BackendRuntime) -> None:
        self.plan, self.model, self.backend = plan, model, backend
        self.scorer = CausalLMForward(model, backend)
        self.executor, self.train_dataset, self.lines = SequentialExecutor(), Rows(), list[str]()

    @property
    def reports(self) -> Any:
        return self

    def info(self, line: str) -> None:
        self.lines.append(line)

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def train_loader(self) -> Any:
        raise AssertionError


def make(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model with random weights, norms included."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CONFIG_MAPPING[family](**SHAPE | FAMILIES[family])
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if "norm" in name:
                    tensor.add_(torch.randn_like(tensor), alpha=0.1)
        return model.to(dtype).train()


def batch_of(lengths: list[int], seed: int = 0) -> Any:
    """Rows of these lengths; about half of the tokens have labels, the last one of each row always."""
    random = np.random.default_rng(seed)
    rows = []
    for number, length in enumerate(lengths):
        weights = (random.random(length) < 0.5).astype(np.float32)
        weights[-1] = 1
        rows.append({"input_ids": random.integers(3, 96, length).astype(np.int32), "weights": weights, "index": number})
    return collate(rows)


def step(context: Context, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    context.model.zero_grad()
    loss = context.scorer.weighted_nll(context.scorer.placed(batch))
    loss.backward()
    named = context.model.named_parameters()
    return loss.detach(), {name: one.grad.clone() for name, one in named if one.grad is not None}


def state(model: nn.Module) -> list[tuple[type, dict[str, Any]]]:
    """Classes and attributes of all modules; hooks by their number."""
    return [
        (type(module), {name: len(value) if name.endswith("_hooks") else value for name, value in vars(module).items()})
        for module in model.modules()
    ]


def same_state(found: list[Any], expected: list[Any]) -> bool:
    for (one, attributes), (other, before) in zip(found, expected, strict=True):
        if one is not other or attributes.keys() != before.keys():
            return False
        if any(attributes[name] is not before[name] and attributes[name] != before[name] for name in before):
            return False
    return True


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    yield
    torch._dynamo.reset()


@dataclass
class Found:
    """A transform, the backend that brings it or that computes besides, and the type of device of both."""

    transform: RegisteredTransform
    runtime: BackendRuntime
    device: str


def every(plan: Any) -> dict[str, Found]:
    """Name -> transform, of the core and of the built-in backends of this machine."""
    found: dict[str, Found] = {}
    for backend in ft_backends():
        devices = [one for one in backend.devices or ("cpu",) if one == "cpu" or backend.present(one)]
        if devices:
            runtime = backend.runtime(plan)
            for one in registered_transforms(plan, runtime):
                found.setdefault(one.transform.name, Found(one, runtime, devices[0]))
    return found


def test_every_transform_has_a_case(plan_of: Any) -> None:
    assert list(every(plan_of())) == list(CASES)


@pytest.fixture
def prepared(plan_of: Any) -> Callable[..., tuple[Context, ModelTransforms]]:
    """``prepared(name, family, dtype)``: a context to which the transforms before this one's slot were applied that it
    needs, and the transform itself, not yet applied."""

    def make_context(name: str, family: str, dtype: torch.dtype) -> tuple[Context, ModelTransforms]:
        case = CASES[name]
        plan = plan_of(**case.options)
        found = every(plan)[name]
        context = Context(plan, case.prepare(make(family, dtype)).to(found.device), found.runtime)
        if found.transform.transform.slot > Slot.CAPABILITIES:
            ModelTransforms(context, [every(plan)["packed attention"].transform]).apply()
            assert context.scorer.packed
        return context, ModelTransforms(context, [found.transform])

    return make_context


PARAMETERS = [
    pytest.param(name, family, dtype, id=f"{name}-{family}-{dtype}", marks=[pytest.mark.slow] * case.slow)
    for name, case in CASES.items()
    for family in FAMILIES
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize(("name", "family", "dtype"), PARAMETERS)
def test_it_changes_nothing_but_rounding_and_is_undone(
    name: str, family: str, dtype: torch.dtype, prepared: Any
) -> None:
    """Loss and gradients of a step; afterwards classes, attributes and bits are those of before."""
    context, transforms = prepared(name, family, dtype)
    batch, case = batch_of([9, 4, 6]), CASES[name]
    before = state(context.model)
    flags = {flag: value for flag, value in vars(context.scorer).items() if not isinstance(value, nn.Module)}
    attention = context.scorer.inner.config._attn_implementation
    expected = step(context, batch)
    transforms.apply()
    (applied,) = transforms.applied
    assert bool(applied.kept) == (family in case.models), [applied.skipped, *(one.refused for one in applied.refused)]
    # of norms, adding 0 or 1 to the weight is tried
    assert not applied.refused or (name, family) == ("fused layers", "gemma2"), applied.refused[0].refused
    assert bool(transforms.line) == bool(applied.kept)
    agree(step(context, batch), expected, 0.0 if case.bits else CLOSE[dtype])
    transforms.undo()
    context.model.train()
    assert same_state(state(context.model), before)
    assert {flag: vars(context.scorer)[flag] for flag in flags} == flags
    assert context.scorer.inner.config._attn_implementation == attention
    agree(step(context, batch), expected, 0.0)


def agree(
    found: tuple[torch.Tensor, dict[str, torch.Tensor]],
    expected: tuple[torch.Tensor, dict[str, torch.Tensor]],
    close: float,
) -> None:
    (loss, gradients), (own_loss, own) = found, expected
    assert gradients.keys() == own.keys()
    if not close:
        assert torch.equal(loss, own_loss)
        assert all(torch.equal(gradients[name], one) for name, one in own.items())
        return
    assert loss.item() == pytest.approx(own_loss.item(), rel=close)
    whole = torch.stack([one.float().norm() for one in own.values()]).norm()
    for name, one in own.items():
        # relative to the tensor, or where nearly all cancels out to the whole gradient
        assert (gradients[name] - one).float().norm() <= close * one.float().norm() + 1e-3 * close * whole, name


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_them_together_on_any_rows(family: str, plan_of: Any) -> None:
    """As a run has them, without the compiler: loss and gradients for random rows, before and after."""
    plan = plan_of(cache_frozen_prefix=False)
    runtime = every(plan)["fused layers"].runtime
    plain = Context(plan, with_lora(make(family)), BackendRuntime())
    context = Context(plan, with_lora(make(family)), runtime)
    transforms = ModelTransforms(context, registered_transforms(plan, runtime))
    transforms.apply()
    expected = {
        "llama": "fused LoRA (21 layers), packed attention, shared prefixes, fused loss, "
        "fused layers (3 gates, 63 linears, 7 norms), pruned last layer",
        "qwen3": "fused LoRA (21 layers), packed attention, shared prefixes, fused loss, "
        "fused layers (3 gates, 63 linears, 13 norms), pruned last layer",
        "gemma2": "fused LoRA (21 layers), packed attention, shared prefixes, fused loss, "
        "fused layers (3 gates, 63 linears, 13 norms)",
        "mixtral": "fused LoRA (12 layers), packed attention, shared prefixes, fused loss, "
        "fused layers (36 linears, 7 norms)",
    }
    assert transforms.line == expected[family]

    @settings(max_examples=5)
    @given(lengths=st.lists(st.integers(2, 24), min_size=1, max_size=4), seed=st.integers(0, 99))
    def holds(lengths: list[int], seed: int) -> None:
        batch = batch_of(lengths, seed)
        agree(step(context, batch), step(plain, batch), 1e-4)

    holds()
    transforms.undo()
    assert same_state(state(context.model), state_like(context.model, plain.model))


def state_like(model: nn.Module, other: nn.Module) -> list[tuple[type, dict[str, Any]]]:
    """Classes and names of attributes of another model, with the values of this one."""
    return [
        (kind, {name: own.get(name) for name in attributes})
        for (kind, attributes), (_, own) in zip(state(other), state(model), strict=True)
    ]
