"""Models that another library has quantised: read, trained on with lora, or refused with what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ft_plugins.models import quantizers
from ftcore.errors import UsageError

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU weights stay as they are stored"),
]
Tensors = dict[str, torch.Tensor]


def fp8(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Blocks of 32 x 32 with a scale each, as DeepSeek-V3 and Qwen3-FP8 store them."""
    rows, columns = (size // 32 for size in weight.shape)
    blocks = weight.reshape(rows, 32, columns, 32)
    scales = blocks.abs().amax(dim=(1, 3)) / 448
    stored = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    numbers = (stored.float() * scales[:, None, :, None]).reshape(weight.shape)
    return {name: stored.reshape(weight.shape), f"{name}_scale_inv": scales}, numbers


def int4(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Groups of 32 with a scale each, eight numbers in an int32, the first one lowest, each 8 too large."""
    groups = weight.reshape(weight.shape[0], -1, 32)
    scales = groups.abs().amax(2) / 7
    whole = (groups / scales[..., None]).round().clamp(-8, 7)
    shifted = (whole.reshape(weight.shape).long() + 8).reshape(weight.shape[0], -1, 8)
    packed = sum(shifted[..., place] << 4 * place for place in range(8))
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    stored = {f"{name}_packed": packed, f"{name}_scale": scales, f"{name}_shape": torch.tensor(weight.shape)}
    return stored, (whole * scales[..., None]).reshape(weight.shape)


WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}),
    "compressed-tensors": (
        int4,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
        },
    ),
}


@pytest.fixture
def quantised(tiny_model_dir: Path, tmp_path: Path) -> Callable[[str], tuple[Path, Tensors]]:
    """``quantised(kind)``: the tiny model as such a library saves it, and the numbers that its layers stand for."""

    def make(kind: str) -> tuple[Path, Tensors]:
        folder = Path(shutil.copytree(tiny_model_dir, tmp_path / kind))
        store, description = KINDS[kind]
        stored, numbers = Tensors(), Tensors()
        for name, weight in load_file(folder / "model.safetensors").items():
            if name.endswith("proj.weight"):
                found, numbers[name] = store(name, weight)
                stored |= found
            else:
                stored[name] = weight
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | {"quantization_config": description}
        (folder / "config.json").write_text(json.dumps(config))
        return folder, numbers

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_lora_trains_on_it(
    kind: str, quantised: Any, applied: Any, base: Any, shake: Any, logits: Any, tmp_path: Path
) -> None:
    """The logits of a float model with the same numbers, every layer adapted, and plain peft reads what is saved."""
    from peft import PeftModel

    if kind == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    folder, numbers = quantised(kind)
    run = applied(model_name_or_path=str(folder), finetuning_type="lora")
    plain = base()
    with torch.no_grad():
        for name, weight in numbers.items():
            plain.get_parameter(name).copy_(weight)
    assert torch.allclose(logits(run.model), logits(plain), atol=1e-5)
    assert not torch.allclose(logits(plain), logits(base()), atol=1e-4)
    trained = {name: tensor for name, tensor in run.model.named_parameters() if tensor.requires_grad}
    assert len(trained) == 28
    shake(run.model)
    run.model(torch.arange(3, 40)[None]).logits.square().sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in trained.values())
    (tmp_path / "out").mkdir()
    run.method.save(run.model, tmp_path / "out")
    assert torch.allclose(logits(PeftModel.from_pretrained(plain, tmp_path / "out")), logits(run.model), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("gptq", "loading it requires gptqmodel and optimum; pip install gptqmodel optimum"),
        ("awq", "loading it requires gptqmodel; pip install gptqmodel"),
        ("compressed-tensors", "loading it requires compressed_tensors; pip install compressed-tensors"),
        ("hqq", "loading it requires hqq; pip install hqq"),
        ("quanto", "loading it requires optimum.quanto; pip install optimum-quanto"),
        ("torchao", "loading it requires torchao; pip install torchao"),
        ("bitsandbytes", r"loading it requires bitsandbytes; pip install 'ftcore\[qlora\]'"),
        ("fbgemm_fp8", "transformers loads such models on a GPU only; use the unquantised model"),
    ],
)
def test_what_is_missing_is_said_by_the_plan(
    method: str, said: str, config_dir: Path, plan_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((config_dir / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (config_dir / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(quantizers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=rf"the model is quantised \({method}\), and {said}"):
        plan_of(model_name_or_path=str(config_dir))


def test_what_is_missing_is_said_where_only_the_hub_knew(quantised: Any, plan_of: Any, tiny_model_dir: Path) -> None:
    """A plan without config.json meets transformers' own answer, in one line."""
    folder, _ = quantised("fp8")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "aqlm"}}
    plan = plan_of(model_name_or_path=str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"cannot be loaded: .*pip install aqlm"):
        plan.plugins.hook.ft_load_model(plan=replace(plan, config=None), kwargs={})


def test_layers_without_gradients_are_refused(plan_of: Any, base: Any, rows_file: Path) -> None:
    plan = plan_of(do_train=True, dataset=str(rows_file), template="chatml")
    model = base()
    model.hf_quantizer = SimpleNamespace(is_trainable=False)
    with pytest.raises(
        UsageError, match="transformers cannot train adapters on such layers; use the unquantised model"
    ):
        plan.method.component.apply(plan, model)
