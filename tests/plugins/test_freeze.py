"""freeze and none: what is trained, how deep the backward pass goes, and what is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcore.errors import UsageError
from ftcore.resources.model_shapes import Architecture

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21's own

ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
MLP = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
NORMS = {"input_layernorm", "post_attention_layernorm"}


def layer(number: int, modules: set[str]) -> set[str]:
    return {f"model.layers.{number}.{module}.weight" for module in modules}


EVERY = ATTENTION | MLP | NORMS
CASES: list[tuple[dict[str, Any], set[str]]] = [
    ({"freeze_trainable_layers": 1}, layer(1, EVERY)),
    ({"freeze_trainable_layers": -1}, layer(0, EVERY)),
    ({}, layer(0, EVERY) | layer(1, EVERY)),
    ({"freeze_trainable_layers": 9}, layer(0, EVERY) | layer(1, EVERY)),
    ({"freeze_trainable_layers": 1, "freeze_trainable_modules": "self_attn"}, layer(1, ATTENTION)),
    (
        {"freeze_trainable_layers": 1, "freeze_trainable_modules": "mlp.down_proj, input_layernorm"},
        layer(1, {"mlp.down_proj", "input_layernorm"}),
    ),
    (
        {"freeze_trainable_layers": 1, "freeze_extra_modules": "lm_head,norm"},
        layer(1, EVERY) | {"lm_head.weight", "model.norm.weight"},
    ),
    ({"freeze_trainable_layers": 0, "freeze_extra_modules": "embed_tokens"}, {"model.embed_tokens.weight"}),
]


@pytest.mark.parametrize(("options", "names"), CASES)
def test_freeze_trains_what_it_is_told_and_counts_it(
    options: dict[str, Any], names: set[str], applied: Any, tiny_model_dir: Path
) -> None:
    run = applied(finetuning_type="freeze", **options)
    trained = {name: tensor for name, tensor in run.model.named_parameters() if tensor.requires_grad}
    assert trained.keys() == names
    architecture = Architecture.from_config(json.loads((tiny_model_dir / "config.json").read_text()))
    assert architecture is not None
    size = 4.0 * architecture.parameters
    number = sum(tensor.numel() for tensor in trained.values())
    assert run.method.count(architecture, run.plan.method.options) == (size, number)
    assert run.method.count(architecture, run.plan.method.options, 2) == ((size + 4 * number) / 2 - number, number) or (
        run.method.count(architecture, run.plan.method.options, 2)[0] == 4 * number + 2 * (size / 4 - number)
    )


def test_the_backward_pass_stops_below_the_lowest_trained_layer(applied: Any) -> None:
    """Nothing under it asks for gradients, none of it is called in the backward pass, and none of it is kept."""
    run = applied(finetuning_type="freeze", freeze_trainable_layers=1)
    below, above = run.model.model.layers
    seen: dict[str, bool] = {}
    below.register_forward_hook(lambda module, inputs, output: seen.update(below=output.requires_grad))
    above.register_forward_hook(lambda module, inputs, output: seen.update(above=output.requires_grad))
    ids = torch.arange(3, 40)[None]
    run.model(ids, labels=ids).loss.backward()
    assert seen == {"below": False, "above": True}
    without = {name for name, tensor in run.model.named_parameters() if tensor.grad is None}
    assert without == layer(0, EVERY) | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    ("options", "layers", "head"),
    [
        ({"freeze_trainable_layers": 1}, 1, False),
        ({"freeze_trainable_layers": -1}, 2, False),
        ({"freeze_trainable_layers": 0, "freeze_extra_modules": "lm_head"}, 0, True),
        ({"freeze_trainable_layers": 1, "freeze_extra_modules": "embed_tokens"}, 2, False),
    ],
)
def test_the_estimate_knows_how_deep_it_goes(
    options: dict[str, Any], layers: int, head: bool, plan_of: Any, tiny_model_dir: Path
) -> None:
    architecture = Architecture.from_config(json.loads((tiny_model_dir / "config.json").read_text()))
    plan = plan_of(finetuning_type="freeze", **options)
    depth = plan.method.component.depth(architecture, plan.method.options)
    assert (depth.layers, depth.head) == (layers, head)


def test_fewer_layers_need_less_memory(plan_of: Any, rows_file: Path) -> None:
    trains = {"finetuning_type": "freeze", "do_train": True, "dataset": str(rows_file), "template": "chatml"}
    needs = [plan_of(freeze_trainable_layers=n, cutoff_len=4096, **trains).memory for n in (1, 2)]
    kept = [need.terms["activations"] for need in needs]
    assert kept[0] == pytest.approx(kept[1] * 2 / 3, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_model_is_left_that_plain_transformers_loads(
    dtype: torch.dtype, applied: Any, base: Any, shake: Any, logits: Any, tmp_path: Path
) -> None:
    """With ``dtype: auto``, which is transformers' default: in half precision what was trained would be rounded."""
    from transformers import AutoModelForCausalLM

    run = applied(finetuning_type="freeze", freeze_trainable_layers=1)
    model = run.method.apply(run.plan, base(dtype))
    shake(model)
    run.method.save(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    own = dict(model.named_parameters())
    assert all(torch.equal(tensor, own[name].float()) for name, tensor in loaded.named_parameters())
    assert torch.equal(logits(loaded), logits(model.float()))


def test_freeze_reads_back_in_place(applied: Any, shake: Any, logits: Any, tmp_path: Path) -> None:
    one, other = (applied(finetuning_type="freeze", freeze_trainable_layers=1) for _ in range(2))
    shake(one.model)
    one.method.save(one.model, tmp_path)
    other.method.load(other.model, tmp_path)
    assert torch.equal(logits(one.model), logits(other.model))


def test_a_module_that_is_not_there_is_named_with_those_that_are(applied: Any) -> None:
    with pytest.raises(UsageError) as caught:
        applied(finetuning_type="freeze", freeze_trainable_modules="attention", freeze_extra_modules="wte")
    assert [str(problem).removeprefix("command line: ") for problem in caught.value.problems] == [
        "freeze_trainable_modules: the model has no 'attention'; it has down_proj, gate_proj, input_layernorm, "
        "k_proj, mlp, o_proj, post_attention_layernorm, q_proj, self_attn, up_proj, v_proj",
        "freeze_extra_modules: the model has no 'wte'; it has embed_tokens, lm_head, norm",
    ]


def test_nothing_to_train_is_said_by_the_plan(plan_of: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n')
    training = {"do_train": True, "dataset": str(rows), "template": "chatml"}
    with pytest.raises(UsageError, match="freeze_trainable_layers: 0 leaves nothing to train"):
        plan_of(finetuning_type="freeze", freeze_trainable_layers=0)
    with pytest.raises(UsageError, match="finetuning_type none trains nothing, and do_train is true"):
        plan_of(finetuning_type="none", **training)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(
        UsageError,
        match="finetuning_type full does not support adapter_name_or_path; write finetuning_type: lora, or merge",
    ):
        plan_of(finetuning_type="full", adapter_name_or_path=str(tmp_path / "adapter"), **training)


def test_none_merges_adapters_and_freezes_everything(
    applied: Any, base: Any, shake: Any, logits: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    lora = applied()
    shake(lora.model)
    lora.method.save(lora.model, tmp_path)
    run = applied(finetuning_type="none", adapter_name_or_path=str(tmp_path))
    assert not any(tensor.requires_grad for tensor in run.model.parameters())
    assert torch.equal(logits(run.model), logits(PeftModel.from_pretrained(base(), tmp_path).merge_and_unload()))
    assert {"optimizer state", "gradients"}.isdisjoint(run.plan.memory.terms)


def test_none_evaluates(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A run of its own, which leaves results and no weights."""
    from ftcore.config.planner import make_plan
    from ftcore.runner.run import run

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"q {n}", "output": f"a {n}"}) + "\n" for n in range(6)))
    out = tmp_path / "out"
    values = {"model_name_or_path": str(tiny_model_dir), "finetuning_type": "none", "output_dir": str(out)}
    values |= {"do_eval": True, "dataset": str(rows), "val_size": 4, "template": "chatml"}
    assert run(make_plan(None, values=values)) == 0
    assert json.loads((out / "eval_results.json").read_text())["eval_loss"] == pytest.approx(6.09, abs=0.1)
    assert not list(out.glob("*.safetensors"))
