"""Tiny random models that see, one for each way in which they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ftcore.testing import tiny_tokenizer

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
}
_QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_GEMMA = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")


@dataclass(frozen=True)
class Kind:
    """A model that sees.

    Args:
        name: its ``model_type``.
        tokens: that its tokenizer needs.
        fields: of its configuration, from those of its text part and its tokens' numbers.
        images: fields of its image processor.
        settings: of its processor.
    """

    name: str
    tokens: tuple[str, ...]
    fields: Callable[[dict[str, Any], dict[str, int]], dict[str, Any]]
    images: Mapping[str, Any]
    settings: Mapping[str, Any]


def _qwen(vision: dict[str, Any], head_dim: dict[str, int]) -> Callable[..., dict[str, Any]]:
    def fields(text: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
        names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
        numbers = dict(zip(names, ids.values(), strict=True))
        return {"text_config": text | head_dim | {"rope_parameters": rope}, "vision_config": vision, **numbers}

    return fields


def _llava(text: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14, "projection_dim": 32}
    return {
        "text_config": text | {"model_type": "llama"},
        "vision_config": vision,
        "image_token_index": ids["<image>"],
        "image_token_id": ids["<image>"],
    }


def _gemma(text: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 7, "vision_use_head": False}
    own = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
    return {
        "text_config": text | own | {"layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": vision,
        "mm_tokens_per_image": 4,
        "boi_token_index": ids["<start_of_image>"],
        "eoi_token_index": ids["<end_of_image>"],
        "image_token_index": ids["<image_soft_token>"],
        "image_token_id": ids["<image_soft_token>"],
    }


_SMALL = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}}
_QWEN2_VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
_QWEN25_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
_QWEN25_VISION |= {"window_size": 56, "fullatt_block_indexes": [1]}
_QWEN3_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
_QWEN3_VISION |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
_SQUARE = {"size": {"height": 28, "width": 28}}

KINDS = {
    kind.name: kind
    for kind in (
        Kind("qwen2_vl", _QWEN, _qwen(_QWEN2_VISION, {}), _SMALL, {}),
        Kind("qwen2_5_vl", _QWEN, _qwen(_QWEN25_VISION, {}), _SMALL, {}),
        Kind("qwen3_vl", _QWEN, _qwen(_QWEN3_VISION, {"head_dim": 8}), _SMALL | {"patch_size": 16}, {}),
        Kind(
            "llava",
            ("<image>",),
            _llava,
            {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
            {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        ),
        Kind("gemma3", _GEMMA, _gemma, _SQUARE, {"image_seq_length": 4}),
    )
}


def seeing_model(name: str, folder: Path) -> Path:
    """Saves a random model of about 100,000 parameters with tokenizer and image processor, and returns the folder."""
    import json

    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    kind, tokenizer = KINDS[name], tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(kind.tokens)}, replace_extra_special_tokens=False)
    if name == "gemma3":
        tokens = dict(zip(("boi_token", "eoi_token", "image_token"), kind.tokens, strict=True))
        tokenizer = type(tokenizer)(
            tokenizer_object=tokenizer.backend_tokenizer, extra_special_tokens=tokens, **_kept(tokenizer)
        )
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in kind.tokens}
    ends = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(name, **kind.fields(_TEXT | ends, ids))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"image_processor_type": IMAGE_PROCESSOR_MAPPING_NAMES[name]["pil"], **kind.images}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    AutoImageProcessor.from_pretrained(folder, backend="pil").save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(dict(kind.settings)))
    return folder


def _kept(tokenizer: Any) -> dict[str, Any]:
    names = ("eos_token", "pad_token", "chat_template")
    return {name: getattr(tokenizer, name) for name in names} | {"clean_up_tokenization_spaces": False}
