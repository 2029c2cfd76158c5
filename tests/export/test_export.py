"""ft export: what is written loads in plain transformers and computes what base and adapter computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from click.testing import CliRunner, Result
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftcore.cli import group
from ftcore.errors import RunError, UsageError
from ftcore.testing import tiny_model

# peft 0.21 asks transformers 5.23 by a deprecated name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
FILES = [
    "Modelfile", "chat_template.jinja", "config.json", "ft_export.json", "generation_config.json", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip


def export(*words: Any) -> Result:
    return CliRunner().invoke(group, ["export", *map(str, words)], catch_exceptions=False)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "exported"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "v_proj"]},
    ],
    ids=["plain", "rslora", "dora", "head", "embedding"],
)
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings", "ignore:Setting .save_embedding_layers")
def test_it_computes_what_base_and_adapter_compute(
    config: dict[str, Any], tied: bool, tmp_path: Path, out: Path, adapter_of: Callable, logits_of: Callable
) -> None:
    """To 1e-5, in float32; also where embedding and head shared weights and only one of them was changed."""
    base = tiny_model(tmp_path / "base", tie_word_embeddings=tied)
    adapter = adapter_of(base, **config)
    done = export("--model", base, "--adapter", adapter, f"export_dir={out}", "template=chatml")
    assert done.exit_code == 0, done.output
    plain = AutoModelForCausalLM.from_pretrained(base)
    before, expected = logits_of(plain), logits_of(PeftModel.from_pretrained(plain, adapter))
    found = logits_of(AutoModelForCausalLM.from_pretrained(out))
    assert (expected - before).abs().max() > 0.01
    assert (expected - found).abs().max() < 1e-5


def test_what_is_written(tiny_model_dir: Path, out: Path, adapter_of: Callable) -> None:
    adapter = adapter_of(tiny_model_dir)
    done = export("--model", tiny_model_dir, "--adapter", adapter, f"export_dir={out}", "template=chatml")
    assert done.exit_code == 0, done.output
    assert names(out) == FILES
    facts = json.loads((out / "ft_export.json").read_text())
    assert sorted(facts["files"]) == [name for name in FILES if name != "ft_export.json"]
    assert facts["adapters"] == [str(adapter)]
    assert facts["dtype"] == "float32"
    tokenizer = AutoTokenizer.from_pretrained(out)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert generation["pad_token_id"] == tokenizer.pad_token_id
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert list(out.parent.glob(".exported*")) == []


def test_several_adapters_are_merged_in_order(
    tiny_model_dir: Path, out: Path, adapter_of: Callable, logits_of: Callable
) -> None:
    first = adapter_of(tiny_model_dir, "first")
    second = adapter_of(tiny_model_dir, "second", seed=2)
    done = export("--model", tiny_model_dir, "--adapter", first, "--adapter", second, f"export_dir={out}")
    assert done.exit_code == 0, done.output
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), first).merge_and_unload()
    expected = logits_of(PeftModel.from_pretrained(model, second))
    assert (expected - logits_of(AutoModelForCausalLM.from_pretrained(out))).abs().max() < 1e-5


def test_shards_and_dtype(tiny_model_dir: Path, out: Path) -> None:
    """0.0001 GB is 100,000 bytes."""
    words = ["--model", tiny_model_dir, f"export_dir={out}", "export_size=0.0001", "export_dtype=bfloat16"]
    assert export(*words).exit_code == 0
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 1
    largest = max(path.stat().st_size for path in shards)
    assert largest < 110_000
    with safe_open(shards[0], "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_a_change_too_small_for_bfloat16_is_rounded_once(tmp_path: Path, out: Path, adapter_of: Callable) -> None:
    """Weights of a bfloat16 base are the float32 sums, rounded: not sums of rounded changes."""
    base = tiny_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(base)
    adapter = adapter_of(base)
    assert export("--model", base, "--adapter", adapter, f"export_dir={out}").exit_code == 0
    exact = PeftModel.from_pretrained(model.float(), adapter).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(out)
    assert found.dtype == torch.bfloat16
    assert all(torch.equal(tensor, exact[name].bfloat16()) for name, tensor in found.state_dict().items())


def test_sampling_that_the_user_wrote_is_kept(tiny_model_dir: Path, out: Path) -> None:
    words = ["--model", tiny_model_dir, f"export_dir={out}", "temperature=0.3", "top_k=7", "repetition_penalty=1.1"]
    assert export(*words).exit_code == 0
    generation = json.loads((out / "generation_config.json").read_text())
    kept = {name: generation.get(name) for name in ("do_sample", "temperature", "top_k", "repetition_penalty", "top_p")}
    assert kept == {"do_sample": True, "temperature": 0.3, "top_k": 7, "repetition_penalty": 1.1, "top_p": None}
    lines = (out / "Modelfile").read_text().splitlines()
    assert lines[-4:] == [
        'PARAMETER stop "<|im_end|>"', "PARAMETER temperature 0.3", "PARAMETER top_k 7", "PARAMETER repeat_penalty 1.1",
    ]  # fmt: skip


def test_greedy_stays_greedy(tiny_model_dir: Path, out: Path) -> None:
    assert export("--model", tiny_model_dir, f"export_dir={out}", "do_sample=false").exit_code == 0
    generation = json.loads((out / "generation_config.json").read_text())
    assert not generation.get("do_sample")
    assert "temperature" not in generation
    assert (out / "Modelfile").read_text().splitlines()[-1] == "PARAMETER temperature 0"


def test_an_earlier_export_is_replaced_and_nothing_else(tiny_model_dir: Path, out: Path, adapter_of: Callable) -> None:
    assert export("--model", tiny_model_dir, f"export_dir={out}", "export_size=0.0001").exit_code == 0
    assert export("--model", tiny_model_dir, f"export_dir={out}").exit_code == 0
    assert names(out) == FILES
    (out / "notes.txt").write_text("mine")
    with pytest.raises(
        UsageError, match=r"contains files that ft export did not write: notes\.txt; write another export_dir"
    ):
        export("--model", tiny_model_dir, f"export_dir={out}")
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="contains files that ft export did not write"):
        export("--model", tiny_model_dir, f"export_dir={tiny_model_dir}")
    file = out.parent / "file"
    file.write_text("")
    with pytest.raises(UsageError, match=r"export_dir .*file is a file"):
        export("--model", tiny_model_dir, f"export_dir={file}")


def test_what_cannot_be_obeyed_is_refused_at_once(tiny_model_dir: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export("--model", tiny_model_dir, "export_legacy_format=true")
    assert [str(problem) for problem in caught.value.problems] == [
        "export_dir is missing; write export_dir=FOLDER",
        "command line: export_legacy_format: true selects the pickle format; "
        "pickled weights can run code and are not supported; remove the option to write safetensors",
    ]
    with pytest.raises(UsageError, match="export_hub_model_id is known but not supported"):
        export("--model", tiny_model_dir, "export_dir=x", "export_hub_model_id=a/b")


def test_a_full_disk_is_said_before_anything_is_written(
    tiny_model_dir: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(out.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RunError, match=r"needs 17,[\d,]+ bytes, and 1,000 are free"):
        export("--model", tiny_model_dir, f"export_dir={out}")
    assert not out.exists()


def test_a_crash_leaves_the_earlier_export(tiny_model_dir: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftcore.export import folder

    assert export("--model", tiny_model_dir, f"export_dir={out}").exit_code == 0
    before = (out / "ft_export.json").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "seal", full)
    with pytest.raises(RunError, match="could not be written to"):
        export("--model", tiny_model_dir, f"export_dir={out}")
    assert (out / "ft_export.json").read_bytes() == before
    assert list(out.parent.glob(".exported*")) == []


def test_a_run_that_has_not_finished_is_not_exported(write_config: Callable, out: Path) -> None:
    with pytest.raises(
        UsageError, match="the run of this file has not finished; let the run finish, or name a checkpoint"
    ):
        export(write_config(), f"export_dir={out}")


def test_an_adapter_that_does_not_fit_is_named(tmp_path: Path, out: Path, adapter_of: Callable) -> None:
    adapter = adapter_of(tiny_model(tmp_path / "wide", hidden_size=96))
    with pytest.raises(
        UsageError, match=r"adapter .* does not fit .*; write the model that the adapter was trained on"
    ):
        export("--model", tiny_model(tmp_path / "base"), "--adapter", adapter, f"export_dir={out}")
    assert not out.exists()


@pytest.mark.slow
def test_a_quantised_base_is_merged_into_as_numbers(
    tiny_model_dir: Path,
    out: Path,
    tmp_path: Path,
    rows_file: Path,
    logits_of: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A qlora run's file: what was trained, four-bit weights and adapter, as one model of numbers."""
    # out of training bitsandbytes multiplies in bfloat16 on processors that have it, 8e-4 off
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    from ftcore.config.planner import make_plan
    from ftcore.runner.run import run

    values = {"model_name_or_path": str(tiny_model_dir), "finetuning_type": "qlora", "do_train": True}
    values |= {"dataset": str(rows_file), "template": "chatml", "max_steps": 2, "learning_rate": 0.05}
    values |= {"output_dir": str(tmp_path / "run")}
    file = tmp_path / "run.yaml"
    file.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items()))
    plan = make_plan(file)
    run(plan)
    done = export(file, f"export_dir={out}")
    assert done.exit_code == 0, done.output
    kwargs = plan.method.component.load_kwargs(plan) | {"dtype": torch.float32}
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, **kwargs)
    expected = logits_of(PeftModel.from_pretrained(base, tmp_path / "run"))
    model = AutoModelForCausalLM.from_pretrained(out)
    assert getattr(model.config, "quantization_config", None) is None
    assert (expected - logits_of(model)).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    plain = logits_of(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), tmp_path / "run"))
    assert (expected - plain).abs().max() > 1e-3
