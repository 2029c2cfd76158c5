"""Checks of a model folder: impossible sizes in config.json, and weight files outside of the folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ftcore.errors import Problem
from ftcore.resources.model_shapes import LAYOUTS, Architecture
from ftcore.utils.json_files import read_object

BOUNDS: Mapping[str, tuple[int, int]] = {
    "hidden_size": (1, 1_000_000),
    "intermediate_size": (1, 100_000_000),
    "num_hidden_layers": (1, 10_000),
    "num_attention_heads": (1, 100_000),
    "num_key_value_heads": (1, 100_000),
    "head_dim": (1, 100_000),
    "vocab_size": (1, 100_000_000),
    "num_experts": (0, 100_000),
    "num_local_experts": (0, 100_000),
    "num_experts_per_tok": (0, 100_000),
    "moe_intermediate_size": (0, 100_000_000),
    "decoder_sparse_step": (1, 10_000),
    "max_position_embeddings": (1, 2**31 - 1),
}
"""Field of config.json -> minimum and maximum, far beyond any existing model."""
KINDS: Mapping[str, tuple[type, ...]] = {
    "model_type": (str,),
    "architectures": (list,),
    "quantization_config": (dict,),
    "text_config": (dict,),
    "tie_word_embeddings": (bool,),
    "mlp_only_layers": (list,),
}
"""Field -> its types; all may be null."""
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
READ_TOO = (
    *("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("preprocessor_config.json", "processor_config.json", "chat_template.json", "quantize_config.json"),
)
"""Further files that transformers reads from a model's folder."""


def folder_problems(folder: Path, config: Mapping[str, Any], where: str) -> list[Problem]:
    """All problems of a model's folder, whatever it is used for.

    Args:
        folder: the model's folder.
        config: its config.json.
        where: the place that names the folder.
    """
    problems = [*config_problems(config, folder / "config.json", where)]
    for name in READ_TOO:
        if (file := folder / name).is_file():
            problems += _unreadable(file, where)
    for file in sorted(folder.glob("*.index.json")):
        problems += index_problems(file, where)
    if not problems:
        problems += _too_large(folder, config, where)
    return problems


def config_problems(config: Mapping[str, Any], file: Path, where: str) -> Iterator[Problem]:
    """Fields with impossible values."""
    for name, kinds in KINDS.items():
        value = config.get(name)
        if value is not None and not isinstance(value, kinds):
            yield Problem(f"{file}: {name} is {_short(value)}, expected {kinds[0].__name__}", where)
    known = config.get("model_type") in LAYOUTS if isinstance(config.get("model_type"), str) else False
    parts = [("", config)]
    if isinstance(text := config.get("text_config"), dict):
        parts.append(("text_config.", text))
    for prefix, part in parts:
        wrong = [*_wrong_sizes(part, known)]
        for name, reason in wrong:
            yield Problem(f"{file}: {prefix}{name} {reason}", where)
        if known and not wrong:
            yield from (Problem(f"{file}: {reason}", where) for reason in _contradictions(part))


def _wrong_sizes(config: Mapping[str, Any], known: bool) -> Iterator[tuple[str, str]]:
    """Fields with wrong values, and why. Lists (values per layer) are wrong only in known model types."""
    for name, (least, most) in BOUNDS.items():
        if name not in config:
            continue
        value = config[name]
        if (value is None and not (known and name in NEEDED)) or (isinstance(value, list | dict) and not known):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            yield name, f"is {_short(value)}, expected a whole number from {least} to {most}"


def _contradictions(config: Mapping[str, Any]) -> Iterator[str]:
    """Contradictions between fields of a known model type."""
    layout = LAYOUTS[config["model_type"]]
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    keys = config.get("num_key_value_heads") or heads
    if heads is not None and keys is not None and heads % keys:
        yield f"num_attention_heads is {heads}, not a multiple of num_key_value_heads, {keys}"
    if (
        hidden is not None
        and heads is not None
        and not config.get("head_dim")
        and not layout.head_dim
        and heads > hidden
    ):
        yield f"num_attention_heads is {heads}, more than hidden_size, {hidden}"
    experts = next((config[name] for name in layout.experts if config.get(name)), 0)
    active = config.get("num_experts_per_tok") or 0
    if experts and active > experts:
        yield f"num_experts_per_tok is {active}, and there are {experts} experts"


def index_problems(file: Path, where: str) -> list[Problem]:
    """Problems of a weight index: it names files outside of its folder, or has no weight_map."""
    if problems := _unreadable(file, where):
        return problems
    found = read_object(file).get("weight_map")
    if not isinstance(found, dict):
        return [Problem(f"{file} has no weight_map", where, "download the model again")]
    names = dict.fromkeys(name if isinstance(name, str) else repr(name) for name in found.values())
    outside = [name for name in names if not _inside(name)]
    hint = "a weight index may only name files of its own folder; do not trust this model"
    return [Problem(f"{file} names {_short(name)}, which lies outside of its folder", where, hint) for name in outside]


def _inside(name: str) -> bool:
    paths = PurePosixPath(name), PureWindowsPath(name)
    if not name or "\0" in name or any(path.is_absolute() or path.drive or path.root for path in paths):
        return False
    return not any(".." in path.parts for path in paths)


def _unreadable(file: Path, where: str) -> list[Problem]:
    try:
        read_object(file)
    except ValueError as error:
        return [Problem(f"{file} {error}", where, "download the model again")]
    return []


def _too_large(folder: Path, config: Mapping[str, Any], where: str) -> Iterable[Problem]:
    """A config.json with more parameters than the weight files hold bits: the rest would be initialised randomly."""
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors") if file.is_file())
    architecture = Architecture.from_config(config) if held else None
    if architecture is not None and architecture.parameters > 8 * held:
        file, size = folder / "config.json", f"{architecture.parameters:,} parameters"
        reason = f"{file} describes {size}, but its weight files have {held:,} bytes"
        yield Problem(reason, where, "download the model again: config.json and weights are of different models")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
