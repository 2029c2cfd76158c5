"""full and lora: what they train, save, and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ft_plugins.methods.lora import LoraOptions
from ftcore.api.plan import Plan
from ftcore.config.planner import make_plan
from ftcore.errors import RunError, UsageError
from ftcore.models import hub_access
from ftcore.resources.model_shapes import Architecture

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21's own

LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture
def plan_of(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Plan]:
    def make(**values: Any) -> Plan:
        base = {"model_name_or_path": str(tiny_model_dir), "output_dir": str(tmp_path / "out")}
        return make_plan(None, values=base | values)

    return make


@pytest.fixture
def base(tiny_model_dir: Path) -> Callable[[], Any]:
    """The tiny model, loaded anew."""
    from transformers import AutoModelForCausalLM

    return lambda dtype=torch.float32: AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=dtype)


def shake(model: Any) -> None:
    """Gives what is trained other values."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.add_(torch.randn_like(tensor) * 0.05)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 40)[None]).logits


def test_lora_trains_adapters_of_every_linear_layer_but_the_head(plan_of: Any, base: Any) -> None:
    plan = plan_of()
    model = plan.method.component.apply(plan, base())
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (8, 16, 0.0, False)
    assert set(config.target_modules) == LINEARS
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert len(trained) == 2 * 7 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)


def test_lora_adds_what_the_paper_says(plan_of: Any, base: Any) -> None:
    """By hand: y = x W' with W' = W + (alpha / r) B A, for every adapted layer."""
    plan = plan_of(lora_rank=4, lora_alpha=12, lora_target="q_proj,down_proj")
    model = plan.method.component.apply(plan, base())
    shake(model)
    changed = base()
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in changed.named_parameters():
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{stem}.lora_A.default.weight" in tensors:
                product = tensors[f"{stem}.lora_B.default.weight"] @ tensors[f"{stem}.lora_A.default.weight"]
                tensor.add_(12 / 4 * product)
    assert not torch.allclose(logits(model), logits(base()), atol=1e-3)
    assert torch.allclose(logits(model), logits(changed), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"lora_rank": 16}, "lora_alpha", 32),
        ({"lora_alpha": 5}, "lora_alpha", 5),
        ({"lora_dropout": 0.25}, "lora_dropout", 0.25),
        ({"use_rslora": True}, "use_rslora", True),
        ({"lora_target": "q_proj, v_proj"}, "target_modules", {"q_proj", "v_proj"}),
        ({"additional_target": "embed_tokens"}, "modules_to_save", ["embed_tokens"]),
    ],
)
def test_lora_options_reach_peft(options: dict[str, Any], field: str, value: Any, plan_of: Any, base: Any) -> None:
    plan = plan_of(**options)
    model = plan.method.component.apply(plan, base())
    assert getattr(model.peft_config["default"], field) == value


def test_the_adapter_loads_in_plain_peft(plan_of: Any, base: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    """The same logits, to the bit by peft's own layers, and the base model's name in its configuration."""
    from peft import PeftModel

    plan = plan_of(additional_target="lm_head", fused_lora=False)
    model = plan.method.component.apply(plan, base())
    shake(model)
    plan.method.component.save(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model_dir)
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path)), logits(model))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_saved_again_it_is_the_same_bytes(method: str, plan_of: Any, base: Any, tmp_path: Path) -> None:
    """Saved, read back into another model in place, and saved again."""
    plan = plan_of(finetuning_type=method)
    one, other = (plan.method.component.apply(plan, base()) for _ in range(2))
    shake(one)
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    kept = [tensor for tensor in other.parameters() if tensor.requires_grad]
    plan.method.component.save(one, folders[0])
    plan.method.component.load(other, folders[0])
    plan.method.component.save(other, folders[1])
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]
    assert all(a is b for a, b in zip(kept, (p for p in other.parameters() if p.requires_grad), strict=True))
    assert torch.equal(logits(one), logits(other))


def test_trained_parameters_are_float32_over_a_half_precision_base(plan_of: Any, base: Any) -> None:
    for method, rest in (("lora", torch.bfloat16), ("full", torch.float32)):
        plan = plan_of(finetuning_type=method)
        model = plan.method.component.apply(plan, base(torch.bfloat16))
        dtypes = {tensor.requires_grad: tensor.dtype for tensor in model.parameters()}
        assert dtypes[True] == torch.float32
        assert dtypes.get(False, rest) == rest


def test_full_trains_everything_and_leaves_a_model(plan_of: Any, base: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    plan = plan_of(finetuning_type="full")
    model = plan.method.component.apply(plan, base())
    assert all(tensor.requires_grad for tensor in model.parameters())
    shake(model)
    plan.method.component.save(model, tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_full_reads_back_tied_weights(plan_of: Any, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(**shape, num_attention_heads=2, tie_word_embeddings=True)
    plan = plan_of(finetuning_type="full")
    one, other = LlamaForCausalLM(config), LlamaForCausalLM(config)
    plan.method.component.save(one, tmp_path)
    plan.method.component.load(other, tmp_path)
    assert torch.equal(logits(one), logits(other))
    assert other.lm_head.weight is other.model.embed_tokens.weight


def test_full_reads_back_experts_that_transformers_stores_one_by_one(plan_of: Any, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = MixtralConfig(**shape, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2)
    plan = plan_of(finetuning_type="full")
    one, other = MixtralForCausalLM(config), MixtralForCausalLM(config)
    plan.method.component.save(one, tmp_path)
    plan.method.component.load(other, tmp_path)
    assert torch.equal(logits(one), logits(other))


def test_other_shapes_are_refused(plan_of: Any, base: Any, tmp_path: Path) -> None:
    plan, small = plan_of(), plan_of(lora_rank=4)
    plan.method.component.save(plan.method.component.apply(plan, base()), tmp_path)
    with pytest.raises(RunError, match=r"lora_A.weight is \(8, 128\), not \(4, 128\)"):
        small.method.component.load(small.method.component.apply(small, base()), tmp_path)


@pytest.fixture
def adapters(plan_of: Any, base: Any, tmp_path: Path) -> list[Path]:
    """Three adapters of different ranks, all of which change something."""
    folders = []
    for number in range(3):
        plan = plan_of(lora_rank=2 + number)
        model = plan.method.component.apply(plan, base())
        shake(model)
        folders.append(tmp_path / f"adapter{number}")
        folders[-1].mkdir()
        plan.method.component.save(model, folders[-1])
    return folders


@pytest.mark.slow
def test_adapters_are_merged_and_the_last_stays_trainable(plan_of: Any, base: Any, adapters: list[Path]) -> None:
    from peft import PeftModel

    plan = plan_of(adapter_name_or_path=",".join(map(str, adapters)))
    model = plan.method.component.apply(plan, base())
    expected = base()
    for folder in adapters[:2]:
        expected = PeftModel.from_pretrained(expected, folder).merge_and_unload()
    expected = PeftModel.from_pretrained(expected, adapters[2])
    assert torch.allclose(logits(model), logits(expected), atol=1e-6)
    assert model.peft_config["default"].r == 4
    trained = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    assert len(trained) == 28
    assert all(".lora_" in name for name in trained)


def test_create_new_adapter_merges_all_and_starts_afresh(plan_of: Any, base: Any, adapters: list[Path]) -> None:
    from peft import PeftModel

    plan = plan_of(adapter_name_or_path=f"{adapters[0]},{adapters[1]}", create_new_adapter=True, lora_rank=5)
    model = plan.method.component.apply(plan, base())
    expected = base()
    for folder in adapters[:2]:
        expected = PeftModel.from_pretrained(expected, folder).merge_and_unload()
    assert model.peft_config["default"].r == 5
    assert torch.allclose(logits(model), logits(expected), atol=1e-6)


def test_a_pickled_adapter_is_refused(plan_of: Any, base: Any, adapters: list[Path]) -> None:
    (adapters[0] / "adapter_model.safetensors").rename(adapters[0] / "adapter_model.bin")
    plan = plan_of(adapter_name_or_path=str(adapters[0]))
    with pytest.raises(UsageError, match=r"has no adapter_model\.safetensors; pickled weights"):
        plan.method.component.apply(plan, base())


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            "LocalEntryNotFoundError",
            "adapter acme/tuned cannot be downloaded; check the name and the network; a local folder works too",
        ),
        (
            "GatedRepoError",
            "adapter acme/tuned is gated; accept its terms on the hub and set HF_TOKEN; a local folder works too",
        ),
        (
            "RepositoryNotFoundError",
            "adapter acme/tuned is not on the hub, or private; check the name; for a private repository set "
            "HF_TOKEN; a local folder works too",
        ),
        (
            "OSError",
            "adapter acme/tuned cannot be downloaded: No space left on device; check the name and the network; "
            "a local folder works too",
        ),
    ],
)
def test_an_adapter_that_the_hub_does_not_give(
    plan_of: Any, base: Any, raised: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the options of training, of answers, and of reward models."""
    import huggingface_hub
    from huggingface_hub import errors

    def fail(*args: Any, **kwargs: Any) -> None:
        if raised == "OSError":
            raise OSError(28, "No space left on device")
        kind = getattr(errors, raised)
        raise kind.__new__(kind)  # their constructors want a response

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(hub_access, "contact", lambda name: None)  # it answers
    plan = plan_of(adapter_name_or_path="acme/tuned")
    with pytest.raises(UsageError) as error:
        plan.method.component.apply(plan, base())
    assert str(error.value) == f"command line: adapter_name_or_path: {said}"
    with pytest.raises(UsageError) as error:
        plan.engine.component.load(plan_of(adapter_name_or_path="acme/tuned", template="chatml"))
    assert str(error.value) == f"command line: adapter_name_or_path: {said}"
    plan = plan_of(stage="ppo", reward_model="acme/tuned", template="chatml")
    from ft_plugins.engines.transformers.loading import load_adapted
    from ft_plugins.stages.ppo.reward_models import reward_plan

    with pytest.raises(UsageError) as error:
        load_adapted(reward_plan(plan))
    assert str(error.value) == f"command line: reward_model: {said}"


@pytest.mark.parametrize(
    "options", [{}, {"lora_target": "q_proj,down_proj", "lora_rank": 3}, {"additional_target": "lm_head"}]
)
def test_count_is_what_is_trained(options: dict[str, Any], plan_of: Any, base: Any, tiny_model_dir: Path) -> None:
    architecture = Architecture.from_config(json.loads((tiny_model_dir / "config.json").read_text()))
    assert architecture is not None
    for method in ("lora", "full"):
        plan = plan_of(finetuning_type=method, **(options if method == "lora" else {}))
        model = plan.method.component.apply(plan, base())
        trained = sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
        size = 4 * sum(tensor.numel() for tensor in base().parameters())
        assert plan.method.component.count(architecture, plan.method.options) == (size, trained)


def test_a_new_adapter_is_the_same_in_every_run(plan_of: Any, base: Any) -> None:
    """Its random half comes from the seed alone, whatever was drawn before."""
    values = []
    for seed in (42, 42, 43):
        torch.rand(3)
        plan = plan_of(seed=seed)
        model = plan.method.component.apply(plan, base())
        values.append(torch.cat([tensor.flatten() for tensor in model.parameters() if tensor.requires_grad]))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_options_take_names_in_both_spellings() -> None:
    assert LoraOptions(lora_target="a, b").lora_target == LoraOptions(lora_target=["a", "b"]).lora_target == ("a", "b")
