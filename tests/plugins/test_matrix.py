"""Every installed method with every installed optimizer: it trains what it should and nothing else, and comes back.

Generated from the plugins that are installed; a stranger's method or optimizer is tested with its defaults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch

from ftcore.api.components import Method, Optimizer
from ftcore.api.plan import Run
from ftcore.api.registry import load
from ftcore.config.planner import make_plan
from ftcore.errors import UsageError
from ftcore.runner.run import load_model, new_trainer, use_template

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning",  # peft 0.21's own
)

PLUGINS = load()
OPTIMIZERS = [offer.full_name for offer in PLUGINS.of(Optimizer)]


def everything(name: str) -> bool:
    return True


def matrices(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def second_layer(name: str) -> bool:
    return name.startswith("model.layers.1.")


def with_lengths(name: str) -> bool:
    return ".lora_" in name


def with_ends(name: str) -> bool:
    return ".lora_" in name or ".modules_to_save." in name


WAYS: dict[str, tuple[dict[str, Any], Callable[[str], bool], list[float]]] = {
    "full": ({}, everything, [6.08665, 5.72252, 5.62647]),
    "freeze": ({"freeze_trainable_layers": 1}, second_layer, [6.08665, 5.94662, 5.88703]),
    "lora": ({}, matrices, [6.08665, 6.04655, 6.04487]),
    "lora dora": ({"use_dora": True}, with_lengths, [6.08665, 6.0423, 6.03833]),
    "lora rslora": ({"use_rslora": True}, matrices, [6.08665, 5.97015, 5.92038]),
    "lora pissa": ({"pissa_init": True}, matrices, [6.08665, 6.02436, 6.0125]),
    "lora plus": ({"loraplus_lr_ratio": 4.0}, matrices, [6.08665, 5.92333, 5.85277]),
    "lora ends": ({"additional_target": "embed_tokens,lm_head"}, with_ends, [6.08665, 5.91467, 5.84234]),
    "qlora nf4": ({}, matrices, [6.08916, 6.04555, 6.04289]),
    "qlora fp4": ({"quantization_type": "fp4", "double_quantization": False}, matrices, [6.09044, 6.05211, 6.05062]),
    "qlora 8": ({"quantization_bit": 8}, matrices, [6.08709, 6.04701, 6.0454]),
}
"""Method and variant -> options, what is trained by its name, and the losses of three steps with AdamW."""


def test_every_method_that_is_installed_is_in_the_matrix() -> None:
    ours = [offer.component.name for offer in PLUGINS.of(Method) if offer.full_name.startswith("ftcore:")]
    assert set(ours) == {way.split()[0] for way in WAYS} | {"none"}


def every_way() -> list[str]:
    others = [offer.full_name for offer in PLUGINS.of(Method) if not offer.full_name.startswith("ftcore:")]
    return [*WAYS, *others]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.json"
    file.write_text(json.dumps([{"instruction": f"question {n}", "output": f"answer {n}"} for n in range(20)]))
    return file


@pytest.fixture
def trained(tiny_model_dir: Path, rows: Path, tmp_path: Path) -> Callable[..., Any]:
    """``trained(way, optimizer)``: three steps; the plan, the model, its tensors before, and the log's losses."""

    def make(way: str, optimizer: str) -> Any:
        # by its small gradients alone some of LoRA's first matrices would not move by the last bit of a float
        rate = 0.1 if "sgd" in optimizer else 1e-3
        values: dict[str, Any] = {"model_name_or_path": str(tiny_model_dir), "dataset": str(rows), "do_train": True}
        values |= {"template": "chatml", "output_dir": str(tmp_path / "out"), "max_steps": 3, "optim": optimizer}
        values |= {"per_device_train_batch_size": 4, "learning_rate": rate, "logging_steps": 1, "save_strategy": "no"}
        values |= {"finetuning_type": way.split()[0] if way in WAYS else way}
        values |= WAYS[way][0] if way in WAYS else {}
        plan = make_plan(None, values=values)
        state = Run(plan=plan, tokenizer=plan.plugins.hook.ft_load_tokenizer(plan=plan))
        state.data = plan.stage.component.datasets(state)
        use_template(state)
        load_model(state)
        before = tensors(state.model)
        trainer = new_trainer(state)
        order = [batch["index"] for batch in trainer.train_loader()][:3]
        batches = [[state.data.train[row] for row in rows] for rows in order]
        trainer.train()
        trainer.transforms.undo()  # the model that is loaded again has plain layers
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return SimpleNamespace(plan=plan, model=state.model, before=before, losses=losses, batches=batches)

    return make


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, as bytes may be compared; tied ones once."""
    found = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone().as_subclass(torch.Tensor) for name, tensor in found}


def fresh(plan: Any) -> Any:
    """The model that the run began with."""
    method = plan.method.component
    kwargs = {"dtype": getattr(torch, plan.precision.compute)} | method.load_kwargs(plan)
    return method.apply(plan, plan.plugins.hook.ft_load_model(plan=plan, kwargs=kwargs))


def check(run: Any, way: str, tmp_path: Path, logits: Any) -> None:
    """Names of what changed, and the way back from the disk."""
    after = tensors(run.model)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, run.before[name])}
    should = {name for name, tensor in run.model.named_parameters() if tensor.requires_grad}
    assert changed == should
    if way in WAYS:
        assert should == {name for name, _ in run.model.named_parameters() if WAYS[way][1](name)}
    method, folder = run.plan.method.component, tmp_path / "saved"
    folder.mkdir()
    method.save(run.model, folder)
    again = fresh(run.plan)
    method.load(again, folder)
    assert all(torch.equal(tensor, after[name]) for name, tensor in tensors(again).items())
    expected = logits(run.model)
    assert torch.equal(logits(again), expected)
    (tmp_path / "again").mkdir()
    method.save(again, tmp_path / "again")
    contents = [{file.name: file.read_bytes() for file in place.iterdir()} for place in (folder, tmp_path / "again")]
    assert contents[0] == contents[1]
    # out of training bitsandbytes quantises the inputs of layers of 8 bits as well
    tolerance = 1e-2 if way == "qlora 8" else 1e-5
    loaded = plain(run.plan, folder)
    assert torch.allclose(logits(loaded), expected, atol=tolerance)
    if method.saves_adapter and not getattr(loaded, "is_quantized", False):
        assert torch.allclose(logits(loaded.merge_and_unload()), expected, atol=1e-5)


@pytest.fixture(autouse=True)
def _numbers_of_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of training bitsandbytes multiplies in bfloat16 on processors that have it, 8e-4 off; not here."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)


def plain(plan: Any, folder: Path) -> Any:
    """What transformers and peft load by themselves."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if not plan.method.component.saves_adapter:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    kwargs = plan.method.component.load_kwargs(plan)
    base = AutoModelForCausalLM.from_pretrained(plan.model.model_name_or_path, dtype=torch.float32, **kwargs)
    return PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize("way", every_way())
def test_every_method_with_the_default_optimizer(way: str, trained: Any, tmp_path: Path, logits: Any) -> None:
    run = trained(way, "adamw")
    if way in WAYS:
        assert run.losses == pytest.approx(WAYS[way][2], abs=5e-5)
    check(run, way, tmp_path, logits)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_of_a_plain_loop(way: str, trained: Any) -> None:
    """The model's own forward on one row at a time, torch's AdamW, a rate that falls linearly, norms cut at 1."""
    run = trained(way, "adamw")
    assert plain_losses(run, 1e-3, 4.0 if way == "lora plus" else 1.0) == pytest.approx(run.losses, abs=2e-5)


def plain_losses(run: Any, rate: float, ratio: float) -> list[float]:
    model = fresh(run.plan).train()
    named = [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]
    groups = [{"params": [tensor], "lr": rate * (ratio if ".lora_B." in name else 1.0)} for name, tensor in named]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 3)
    losses = []
    for rows in run.batches:
        optimizer.zero_grad()
        total = sum((row_loss(model, row) for row in rows), torch.zeros(()))
        total /= sum(float(row["weights"][1:].sum()) for row in rows)
        total.backward()
        torch.nn.utils.clip_grad_norm_([tensor for _, tensor in named], 1.0)
        optimizer.step()
        schedule.step()
        losses.append(total.item())
    return losses


def row_loss(model: Any, row: Any) -> torch.Tensor:
    ids, weights = torch.tensor(row["input_ids"]).long(), torch.tensor(row["weights"])
    logps = model(ids[None]).logits[0, :-1].log_softmax(-1)
    return -(logps.gather(1, ids[1:, None])[:, 0] * weights[1:]).sum()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("way", [way for way in every_way() if " " not in way or way == "qlora nf4"])
def test_every_method_with_every_optimizer(way: str, optimizer: str, trained: Any, tmp_path: Path, logits: Any) -> None:
    try:
        run = trained(way, optimizer)
    except UsageError as error:
        pytest.skip(str(error))  # it needs a package or a GPU that is not here, and says so
    assert all(map(math.isfinite, run.losses))
    check(run, way, tmp_path, logits)
