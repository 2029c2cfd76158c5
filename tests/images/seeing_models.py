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
        name: its ``model_type``, unless that is said.
        tokens: that its tokenizer needs.
        fields: of its configuration, from those of its text part and its tokens' numbers.
        images: fields of its image processor.
        settings: of its processor.
        model_type: where it is not the name.
        named: parts of its tokenizer that hold the tokens, where the processor reads them off there.
    """

    name: str
    tokens: tuple[str, ...]
    fields: Callable[[dict[str, Any], dict[str, int]], dict[str, Any]]
    images: Mapping[str, Any]
    settings: Mapping[str, Any]
    model_type: str = ""
    named: tuple[str, ...] = ()


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


def _pixtral(text: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    vision = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    return {
        "text_config": text | {"model_type": "mistral", "head_dim": 8},
        "vision_config": vision,
        "image_token_index": ids["[IMG]"],
        "image_token_id": ids["[IMG]"],
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def _paligemma(text: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_use_head": False}
    return {
        "text_config": text | {"model_type": "gemma", "head_dim": 8},
        "vision_config": vision | {"projection_dim": 32},
        "projection_dim": 32,
        "hidden_size": 32,
        "image_token_index": ids["<image>"],
        "image_token_id": ids["<image>"],
    }


def _mllama(text: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1}
    vision |= {"attention_heads": 2, "image_size": 28, "patch_size": 14, "max_num_tiles": 4}
    vision |= {"intermediate_layers_indices": [0, 1], "vision_output_dim": 96}
    vision |= {"supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]}
    return {
        # its own token for images stands behind the vocabulary
        "text_config": text
        | {
            "bos_token_id": 1,
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
            "rope_parameters": rope,
            "vocab_size": min(ids.values()),
        },
        "vision_config": vision,
        "image_token_index": ids["<|image|>"],
    }


_SMALL = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}}
_QWEN2_VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
_QWEN25_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
_QWEN25_VISION |= {"window_size": 56, "fullatt_block_indexes": [1]}
_QWEN3_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
_QWEN3_VISION |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
_QWEN35_VISION = {name: value for name, value in _QWEN3_VISION.items() if name != "deepstack_visual_indexes"}
_QWEN35_TEXT = {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4}
_QWEN35_TEXT |= {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
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
        Kind(
            "gemma3",
            _GEMMA,
            _gemma,
            _SQUARE,
            {"image_seq_length": 4},
            named=("boi_token", "eoi_token", "image_token"),
        ),
        Kind("qwen3_5", _QWEN, _qwen(_QWEN35_VISION, _QWEN35_TEXT), _SMALL | {"patch_size": 16}, {}),
        Kind(
            "pixtral",
            ("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
            _pixtral,
            {"size": {"longest_edge": 64}, "patch_size": {"height": 16, "width": 16}},
            {"processor_class": "PixtralProcessor", "patch_size": 16},
            model_type="llava",
        ),
        Kind("paligemma", ("<image>",), _paligemma, _SQUARE | {"image_seq_length": 4}, {}, named=("image_token",)),
        Kind("mllama", ("<|image|>",), _mllama, _SQUARE | {"max_image_tiles": 4}, {}, named=("image_token",)),
    )
}


def seeing_model(name: str, folder: Path) -> Path:
    """Saves a random model of about 100,000 parameters with tokenizer and image processor, and returns the folder."""
    import json

    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

    kind, tokenizer = KINDS[name], tiny_tokenizer()
    model_type = kind.model_type or name
    tokenizer.add_special_tokens({"additional_special_tokens": list(kind.tokens)}, replace_extra_special_tokens=False)
    if kind.named:
        tokens = dict(zip(kind.named, kind.tokens, strict=True))
        tokenizer = type(tokenizer)(
            tokenizer_object=tokenizer.backend_tokenizer, extra_special_tokens=tokens, **_kept(tokenizer)
        )
    if name in ("paligemma", "mllama"):  # their processors write one
        tokenizer.bos_token = "<|im_start|>"
    if name == "paligemma":  # its processor would add them
        tokenizer.add_tokens(EXTRA_TOKENS)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in kind.tokens}
    ends = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(model_type, **kind.fields(_TEXT | ends, ids))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        for key, tensor in model.named_parameters():
            if _is_shut(key):
                torch.nn.init.normal_(tensor)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images = IMAGE_PROCESSOR_MAPPING_NAMES[name]["pil"]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": images, **kind.images}))
    AutoImageProcessor.from_pretrained(folder, backend="pil").save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(dict(kind.settings)))
    return folder


def _is_shut(name: str) -> bool:
    """Whether these parameters are zero in a new model, which then sees nothing."""
    return name.endswith(("gate", "gate_attn", "gate_ffn", "mm_input_projection_weight"))


def _kept(tokenizer: Any) -> dict[str, Any]:
    names = ("eos_token", "pad_token", "bos_token", "chat_template")
    return {name: getattr(tokenizer, name) for name in names} | {"clean_up_tokenization_spaces": False}


def pictures_of(name: str, folder: Path) -> Any:
    """How such a model reads images, as a run loads it."""
    from ftcore.config.planner import make_plan
    from ftcore.data.multimodal.images import ImageReader

    plan = make_plan(None, values={"model_name_or_path": str(folder), "template": "chatml", "template_check": "off"})
    return ImageReader.of(plan, plan.plugins.hook.ft_load_tokenizer(plan=plan))
