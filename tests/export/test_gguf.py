"""GGUF files, read back by transformers' own reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from gguf import GGUFReader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ftcore.cli import group
from ftcore.errors import UsageError
from ftcore.export.gguf_vocabulary import read_vocabulary
from ftcore.testing import tiny_model, tiny_tokenizer

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64, "rope_theta": 10_000.0}


def export(*words: Any) -> str:
    done = CliRunner().invoke(group, ["export", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def qwen(folder: Path, kind: str) -> Path:
    tokenizer = tiny_tokenizer()
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96}
    shape |= {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    shape |= {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    # transformers' reader takes a head's width of qwen3 to be 128, whatever the file says
    model = (
        Qwen2ForCausalLM(Qwen2Config(**shape))
        if kind == "qwen2"
        else Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=128))
    )
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(tensor, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "llama tied", "qwen2", "qwen3"])
@pytest.mark.parametrize(("store", "tolerance"), [("f32", 1e-5), ("f16", 2e-3), ("q8_0", 2e-2)])
def test_it_reads_back_to_the_same_logits(
    kind: str, store: str, tolerance: float, tmp_path: Path, logits_of: Callable
) -> None:
    if kind.startswith("llama"):
        base = tiny_model(tmp_path / "base", tie_word_embeddings=kind.endswith("tied"))
    else:
        base = qwen(tmp_path / "base", kind)
    out = tmp_path / "out"
    export("--model", base, f"export_dir={out}", f"export_gguf={store}")
    expected = logits_of(AutoModelForCausalLM.from_pretrained(base))
    found = logits_of(AutoModelForCausalLM.from_pretrained(out, gguf_file=f"model-{store}.gguf"))
    assert (found - expected).abs().max() / expected.abs().max() < tolerance
    assert f"FROM ./model-{store}.gguf" in (out / "Modelfile").read_text()


def test_metadata_and_vocabulary(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export("--model", tiny_model(tmp_path / "base"), f"export_dir={out}", "export_gguf=q8_0", "template=chatml")
    reader = GGUFReader(out / "model-q8_0.gguf")

    def value(name: str) -> Any:
        return reader.fields[name].contents()

    tokenizer = AutoTokenizer.from_pretrained(out)
    assert value("general.architecture") == "llama"
    assert value("llama.attention.head_count_kv") == 2
    assert value("tokenizer.ggml.model") == "gpt2"
    assert value("tokenizer.ggml.pre") == "gpt-2"
    assert value("tokenizer.ggml.tokens") == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert value("tokenizer.ggml.token_type")[:4] == [3, 3, 3, 1]
    assert value("tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    assert value("tokenizer.ggml.add_bos_token") is False
    template = value("tokenizer.chat_template")
    assert "generation %}" not in template
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False) == text
    assert value("general.file_type") == 7


def test_the_vocabulary_is_filled_up_to_the_models_size(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", vocab_size=448)
    out = tmp_path / "out"
    export("--model", base, f"export_dir={out}", "export_gguf=f16")
    fields = GGUFReader(out / "model-f16.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 448
    assert tokens[-1] == "[PAD447]"
    assert fields["tokenizer.ggml.token_type"].contents()[-1] == 5


def test_frequencies_that_are_scaled_each_in_its_own_way(tmp_path: Path) -> None:
    """The divisors give the frequencies that transformers computes with."""
    base = tiny_model(tmp_path / "base", rope_parameters=LLAMA3)
    out = tmp_path / "out"
    export("--model", base, f"export_dir={out}", "export_gguf=f32")
    tensor = next(one for one in GGUFReader(out / "model-f32.gguf").tensors if one.name == "rope_freqs.weight")
    width = 16
    plain = 1 / 10_000.0 ** (torch.arange(0, width, 2).float() / width)
    expected = AutoModelForCausalLM.from_pretrained(base).model.rotary_emb.inv_freq
    assert torch.allclose(plain / torch.tensor(tensor.data), expected, rtol=1e-6)
    assert len(set(tensor.data.tolist())) > 3


def test_what_gguf_cannot_hold_is_an_error_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcore.export import merging

    base = tiny_model(tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"model_type": "cohere2"}
    (base / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(merging, "merged_model", lambda plan: pytest.fail("the model was loaded"))
    with pytest.raises(UsageError) as caught:
        export("--model", base, f"export_dir={tmp_path / 'out'}", "export_gguf=f16")
    assert str(caught.value) == (
        "command line: no GGUF file can be written: architecture cohere2 is not supported; "
        "remove export_gguf; supported architectures: llama, qwen2, qwen3"
    )


def test_another_splitting_is_refused() -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("x"), "isolated")
    assert read_vocabulary(tokenizer) == (
        None, "the pre-tokenizer is not supported"
    )  # fmt: skip


@pytest.mark.parametrize(("pattern", "pre"), [(r"\p{N}{1,3}", "llama-bpe"), (r"\p{N}", "qwen2")])
def test_known_splittings(pattern: str, pre: str) -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer = tiny_tokenizer()
    whole = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + pattern
    whole += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    steps = [pre_tokenizers.Split(Regex(whole), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    vocabulary, reason = read_vocabulary(tokenizer)
    assert vocabulary is not None, reason
    assert vocabulary.pre == pre
