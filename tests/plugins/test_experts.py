"""Runs of models with experts: what is said, what peft reads again, and nothing else that it does on its own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from ftcore.api.plan import Run
from ftcore.cli import group
from ftcore.config.planner import make_plan
from ftcore.errors import UsageError
from ftcore.runner.run import load_model
from ftcore.testing import tiny_tokenizer

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size", "kv_lora_rank", "q_lora_rank"), 64),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("first_k_dense_replace", "n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("num_hidden_layers", "num_experts_per_tok"), 2),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``folders(model_type)``: a tiny model with experts."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tokenizer = tiny_tokenizer()
            ends = {
                "pad_token_id": tokenizer.pad_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "bos_token_id": None,
            }
            config = AutoConfig.for_model(name, **SMALL, **ends, vocab_size=len(tokenizer))
            with torch.random.fork_rng():
                torch.manual_seed(0)
                AutoModelForCausalLM.from_config(config).save_pretrained(made[name])
            tokenizer.save_pretrained(made[name])
        return made[name]

    return make


@pytest.fixture
def config_file(folders: Any, tmp_path: Path) -> Callable[..., list[str]]:
    """``config_file(model_type, option=value)``: the words of a command line."""

    def make(name: str, **values: Any) -> list[str]:
        rows = [{"prompt": f"q{n} " * 20, "completion": "a b c " * 60} for n in range(4)]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        base = {"model_name_or_path": folders(name), "dataset": tmp_path / "rows.json", "template": "chatml"}
        base |= {"template_check": "off", "do_train": "true", "output_dir": tmp_path / "out", "max_steps": 2}
        base |= {"per_device_train_batch_size": 4, "learning_rate": 0.01, "tokens_per_pass": 512}
        (tmp_path / "run.yaml").write_text("".join(f"{key}: {value}\n" for key, value in base.items()))
        return [str(tmp_path / "run.yaml"), *(f"{key}={value}" for key, value in values.items())]

    return make


def _said(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("of the weights in linear layers and experts")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe", "gpt_oss"])
def test_run_and_plan_say_it_and_peft_reads_the_adapter(
    name: str, config_file: Any, folders: Any, tmp_path: Path
) -> None:
    words = config_file(name, fused_lora="false")
    planned = CliRunner().invoke(group, ["plan", *words], catch_exceptions=False).output
    ran = CliRunner().invoke(group, ["run", *words], catch_exceptions=False).output
    assert _said(planned) == _said(ran)
    assert len(_said(ran)) == 1
    model = AutoModelForCausalLM.from_pretrained(folders(name), dtype=torch.float32)
    ids = torch.arange(24)[None]
    with torch.no_grad():
        before = model(ids).logits
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft's
        adapted = PeftModel.from_pretrained(model, tmp_path / "out")
    tensors = {key for key, _ in adapted.named_parameters() if "lora_" in key}
    with torch.no_grad():
        assert (adapted(ids).logits - before).abs().max() > 1e-3
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert not saved["target_parameters"]
    assert all(any(f".{target}." in key for target in saved["target_modules"]) for key in tensors)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe", "phimoe"])
def test_what_is_quantised(name: str, bits: int, config_file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file, *words = config_file(name, quantization_bit=bits, finetuning_type="qlora")
    plan = make_plan(Path(file), words)
    state = Run(plan=plan, tokenizer=plan.plugins.hook.ft_load_tokenizer(plan=plan))
    load_model(state)
    found, planned = plan.method.component.coverage(plan, state.model), plan.method.component.planned_coverage(plan)
    assert found == planned
    odd = 2 * 64 * 4 * (name == "phimoe")  # its routers, which are of a class of their own
    assert found.quantized + found.experts + odd == found.quantizable
    assert _said(capsys.readouterr().out) == [str(found)]
    assert f"are quantised ({found.quantized:,} of {found.quantizable:,})" in str(found)


@pytest.mark.slow
def test_experts_that_are_named_are_trained_and_passes_are_not_side_by_side(config_file: Any, tmp_path: Path) -> None:
    words = config_file("qwen3_moe", lora_target="q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj")
    ran = CliRunner().invoke(group, ["run", *words], catch_exceptions=False).output
    assert _said(ran) == []
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_parameters"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"lora_target": "gate_proj,up_proj,down_proj", "lora_dropout": 0.1}, "does not work with lora_dropout != 0"),
        ({"lora_target": "nothing"}, "Target modules {'nothing'} not found in the base model"),
    ],
)
def test_what_peft_refuses_is_an_error_with_its_place(values: Any, reason: str, config_file: Any) -> None:
    file, *words = config_file("qwen3_moe", **values)
    plan = make_plan(Path(file), words)
    state = Run(plan=plan, tokenizer=plan.plugins.hook.ft_load_tokenizer(plan=plan))
    with pytest.raises(UsageError, match="peft refuses the adapter: ") as error:
        load_model(state)
    assert reason in str(error.value)
