"""Decoder layers by torch's compiler. Its backend ``aot_eager`` traces as inductor does and makes no machine code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from ft_plugins.backends.cpu.runtime import CpuRuntime
from ftcore.config.validation import core
from ftcore.training.batching.shared_prefix import PrefixSharingCollator
from ftcore.training.cost_model.prefix import AlwaysShare
from ftcore.training.model_transforms.comparing import apply_changes
from ftcore.training.model_transforms.reference_context import ReferenceContext
from ftcore.training.model_transforms.torch_compile import CompiledLayer, TorchCompile
from ftcore.training.reference.logprob_cache import Reference, ReferenceMetric, _key
from ftcore.training.step.executor import add_gradients, loss_and_gradients

pytestmark = [
    pytest.mark.slow,  # dynamo takes seconds for the smallest layer
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft 0.21's
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # dynamo looks at it
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("torchs_products"),
]

TRACED = {"torch_compile_backend": "aot_eager"}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are compiled in float32 on a CPU too, where results can be compared to the last digits."""
    monkeypatch.setattr(CpuRuntime, "has_fused_layers", lambda runtime, layer: False)


def rows_of(tokens: Any) -> Any:
    """Four rows that begin alike, so that passes with and without something shared are possible."""
    rows = tokens([23, 31, 14, 26], untrained=())
    for ids in rows.rows[1:]:
        ids[:8] = rows.rows[0][:8]
    for weights in rows.weights:
        weights[:9] = 0
    return rows


def step(
    trainer: Any, numbers: Sequence[int] = range(4), shared: bool = False
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    rows = [trainer.train_dataset[number] for number in numbers]
    batch = PrefixSharingCollator(trainer.data_collator.collate, AlwaysShare() if shared else None)(rows)
    trainer.model.train()
    trainer.model.zero_grad()
    with trainer.autocast():
        loss = trainer.objective.loss_sum(batch)
    loss.backward()
    return loss.detach(), [one.grad.clone() for one in trainer.model.parameters() if one.grad is not None]


def agree(found: Any, expected: Any, close: float = 1e-5) -> None:
    assert found[0].item() == pytest.approx(expected[0].item(), rel=close)
    assert len(found[1]) == len(expected[1])
    for one, other in zip(found[1], expected[1], strict=True):
        assert (one - other).norm() <= 10 * close * other.norm() + 1e-9


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("torch_compile")]


@pytest.mark.parametrize(
    ("method", "again"),
    [("lora", False), ("lora", True), ("full", False), ("freeze", True)],
    ids=["lora-kept", "lora-recomputed", "full-kept", "freeze-recomputed"],
)
def test_a_step_is_that_of_the_layers_as_they_are(
    method: str, again: bool, in_float32: None, trainer_of: Any, tokens: Any, capsys: Any
) -> None:
    options = {"finetuning_type": method, "freeze_trainable_layers": 1, "disable_gradient_checkpointing": not again}
    options["cache_frozen_prefix"] = False
    expected = trainer_of(rows_of(tokens), **options)
    trainer = trainer_of(rows_of(tokens), **options, **TRACED)
    count = 1 if method == "freeze" else 2
    assert [isinstance(layer, CompiledLayer) for layer in trainer.scorer.layers()][-count:] == [True] * count
    assert said(capsys)[0].startswith(f"torch_compile: {count} layers are compiled, ")
    agree(step(trainer), step(expected))
    agree(step(trainer, shared=True), step(expected, shared=True))


def test_other_lengths_and_beginnings_are_not_compiled_anew(in_float32: None, trainer_of: Any, tokens: Any) -> None:
    trainer = trainer_of(rows_of(tokens), **TRACED)
    with torch.compiler.set_stance("fail_on_recompile"):
        for numbers in ([0, 1, 2, 3], [2], [1, 3]):
            step(trainer, numbers)
            step(trainer, numbers, shared=True)


def test_in_float32_on_a_cpu_layers_stay_what_they_are(trainer_of: Any, tokens: Any, capsys: Any) -> None:
    expected = trainer_of(rows_of(tokens))
    trainer = trainer_of(rows_of(tokens), torch_compile=True)
    assert not any(isinstance(layer, CompiledLayer) for layer in trainer.scorer.layers())
    (line,) = said(capsys)
    assert line == (
        "torch_compile: no layer is compiled: in float32 on a CPU ft's fused layers are faster than compiled ones"
    )
    found, own = step(trainer), step(expected)
    assert torch.equal(found[0], own[0])
    assert all(map(torch.equal, found[1], own[1]))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """``backend(name, function)``: one that is installed for the test."""

    def install(name: str, function: Any) -> None:
        monkeypatch.setattr(core, "backends", lambda: [name])
        monkeypatch.setitem(torch._dynamo.backends.registry._COMPILER_FNS, name, function)
        monkeypatch.setitem(torch._dynamo.backends.registry._BACKENDS, name, None)

    return install


def slightly_wrong(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    return lambda *args: [
        one * 1.001 if isinstance(one, torch.Tensor) and one.is_floating_point() else one for one in graph(*args)
    ]


def without_memory(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    raise MemoryError("no room\nfor it")


@pytest.mark.parametrize(
    ("function", "why"),
    [(slightly_wrong, "layer 0 computes other results"), (without_memory, "MemoryError: no room for it")],
)
def test_a_compiler_that_fails_is_not_used(
    function: Any, why: str, in_float32: None, backend: Any, trainer_of: Any, tokens: Any, capsys: Any
) -> None:
    name = function.__name__
    backend(name, function)
    expected = step(trainer_of(rows_of(tokens)))
    trainer = trainer_of(rows_of(tokens), torch_compile_backend=name)
    (line,) = said(capsys)
    assert line.startswith("torch_compile: no layer is compiled: ")
    assert why in line
    assert trainer.scorer.compiled is None
    assert not any(isinstance(layer, CompiledLayer) for layer in trainer.scorer.layers())
    found = step(trainer)
    assert torch.equal(found[0], expected[0])
    assert all(map(torch.equal, found[1], expected[1]))


def test_frozen_layers_are_kept_as_without_it(in_float32: None, trainer_of: Any, tokens: Any) -> None:
    options = {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "cache_frozen_prefix": True}
    expected = trainer_of(rows_of(tokens), **options)
    trainer = trainer_of(rows_of(tokens), **options, **TRACED)
    assert trainer.scorer.frozen_layer_cache.enabled
    assert [isinstance(layer, CompiledLayer) for layer in trainer.scorer.layers()] == [False, True]
    agree(step(trainer), step(expected))


def test_without_gradients_it_is_the_same_code_and_answers_go_by_the_layers_as_they_are(
    in_float32: None, trainer_of: Any, tokens: Any
) -> None:
    expected = trainer_of(rows_of(tokens), finetuning_type="full")
    trainer = trainer_of(rows_of(tokens), finetuning_type="full", **TRACED)
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(4)])
    with_them = trainer.scorer.hidden(batch)
    with torch.no_grad():
        without = trainer.scorer.hidden(batch)
    assert torch.equal(with_them.detach(), without)
    assert not without.requires_grad
    asked = {"input_ids": torch.tensor([[5, 9, 11]]), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(trainer.model.eval().generate(**asked), expected.model.eval().generate(**asked))


def test_what_is_kept_of_a_reference_is_of_compiled_layers(trainer_of: Any, tokens: Any) -> None:
    keys, trainer = set(), trainer_of(rows_of(tokens))
    for compiled in (None, ("aot_eager", None), ("inductor", None), ("inductor", "max-autotune")):
        trainer.scorer.compiled = compiled
        reference = Reference.of(trainer.model, trainer.scorer, trainer.data_collator)
        measure = ReferenceMetric("logps", lambda scorer, batch: torch.zeros(1))
        keys.add(_key(trainer, measure, reference, trainer.train_dataset))
    assert len(keys) == 4


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "gpt_oss"])
def test_families(
    name: str, small_models: Mapping[str, Any], trainer_of: Any, tokens: Any, request: pytest.FixtureRequest
) -> None:
    from ftcore.training.forward.causal_lm import CausalLMForward

    rows = tokens([9, 21, 14], vocabulary=90, untrained=())
    host = trainer_of(rows, **TRACED)
    assert host.scorer.compiled is None, "its own model would be compiled for nothing"
    request.getfixturevalue("in_float32")
    results = []
    for compile_it in (False, True):
        scorer = CausalLMForward(small_models[name].make(), CpuRuntime())
        scorer.probe_capabilities()
        if compile_it:
            context = ReferenceContext(host, scorer.model, scorer)
            apply_changes(TorchCompile().changes(context))
            assert scorer.compiled == ("aot_eager", None)
        scorer.model.train()
        loss = scorer.weighted_nll(host.data_collator.collate([rows[0], rows[1], rows[2]]))
        loss.backward()
        results.append((loss.detach(), [one.grad for one in scorer.model.parameters() if one.grad is not None]))
    agree(results[1], results[0])


def test_halves_side_by_side(in_float32: None, trainer_of: Any, tokens: Any) -> None:
    """Two threads meet the compiler at once, and one waits for what the other lends it."""
    rows = tokens([330, 310, 150, 700], untrained=())
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results = []
        for options in ({}, TRACED):
            trainer = trainer_of(rows, **options)
            assert trainer.executor.workers == 2
            apart = [trainer.data_collator([rows[number]]) for number in range(2)]
            trained = [tensor for tensor in trainer.model.parameters() if tensor.requires_grad]
            job = partial(loss_and_gradients, trainer.objective.loss_sum, trained)
            losses = add_gradients(trainer.each(job, apart), trained)
            halves = trainer.data_collator([rows[3]])
            assert trainer.scorer.sequence_split.accepts(halves)
            losses.append(trainer.objective.loss_sum(halves))
            losses[-1].backward()
            gradients = [one.grad.clone() for one in trainer.model.parameters() if one.grad is not None]
            results.append((torch.stack([one.detach().double() for one in losses]).sum(), gradients))
    finally:
        torch.set_num_threads(before)
    agree(results[1], results[0])


@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.2, "torch_compile_mode": "max-autotune-no-cudagraphs"}])
def test_by_inductor(options: dict[str, Any], in_float32: None, trainer_of: Any, tokens: Any, capsys: Any) -> None:
    """Dropout drops what it drops without the compiler."""
    expected = trainer_of(rows_of(tokens), **{name: one for name, one in options.items() if "compile" not in name})
    trainer = trainer_of(rows_of(tokens), torch_compile=True, **options)
    assert trainer.scorer.compiled == ("inductor", options.get("torch_compile_mode"))
    results = []
    for one in (trainer, expected):
        torch.manual_seed(1)
        results.append(step(one))
    agree(*results)
