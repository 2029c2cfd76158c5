"""Every image-text model of transformers, tiny and random, with a tokenizer and a processor made for it.

Sizes are read off the names of configuration fields; what else a type needs stands in `KINDS`. What is not built stands
in `NOT_BUILT` with the reason.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

from ft_plugins.models.processors import _pixtral, _unchecked
from ftcore.api.option_groups import MediaOptions
from ftcore.data.multimodal.images import ImageReader
from ftcore.testing import tiny_tokenizer

_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_CLIP = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_CLIP_SIZE = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a type needs besides small sizes.

    Args:
        config: path of a field -> value.
        images: fields of its image processor.
        processor: fields of its processor.
        frame: what stands around its token.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    frame: str = "{}"


KINDS: Mapping[str, Kind] = {
    "deepseek_vl": Kind(config={"vision_config.image_size": 384}),
    "exaone4_5": Kind(),
    "glm46v": Kind(config={"text_config.rope_parameters": _ROPE | {"partial_rotary_factor": 1.0}}),
    "glm4v": Kind(config={"text_config.rope_parameters": _ROPE | {"partial_rotary_factor": 1.0}}),
    "granite_docling": Kind(images={"do_image_splitting": False}),
    "hyperclovax_vision_v2": Kind(),
    "internvl": Kind(
        config={"vision_config.use_mask_token": False, "vision_config.image_size": [448, 448]},
        images={"size": {"height": 448, "width": 448}, "max_patches": 2},
        processor={"image_seq_length": 256},
    ),
    "lfm3_vl": Kind(config={"vision_config.patch_size": 14}),
    "lighton_ocr": Kind(),
    "llava": Kind(images=_CLIP_SIZE, processor=_CLIP),
    "llava_next": Kind(images=_CLIP_SIZE, processor=_CLIP),
    "llava_next_video": Kind(images=_CLIP_SIZE, processor=_CLIP),
    "llava_onevision": Kind(processor={"num_image_tokens": 729, "vision_feature_select_strategy": "full"}),
    "mistral3": Kind(
        images={"patch_size": {"height": 14, "width": 14}, "size": {"longest_edge": 224}},
        processor={"patch_size": 14, "spatial_merge_size": 2},
    ),
    "paddleocr_vl": Kind(config={"text_config.rope_parameters": _ROPE}),
    "qwen2_5_vl": Kind(config={"text_config.rope_parameters": _ROPE}),
    "qwen2_vl": Kind(config={"text_config.rope_parameters": _ROPE}),
    "qwen3_5": Kind(images={"patch_size": 16}),
    "qwen3_5_moe": Kind(images={"patch_size": 16}),
    "qwen3_vl": Kind(images={"patch_size": 16}),
    "video_llama_3": Kind(config={"vision_config.patch_size": 14}),
    "video_llava": Kind(),
    "vipllava": Kind(config={"vision_feature_layers": [-2, -1]}, images=_CLIP_SIZE, processor=_CLIP),
    "aya_vision": Kind(config={"vision_config.image_size": 364}, images={"size": {"height": 364, "width": 364}}),
    "cosmos3_edge": Kind(),
    "idefics3": Kind(
        config={"vision_config.image_size": 364, "vision_config.patch_size": 14}, images={"size": {"longest_edge": 364}}
    ),
    "gemma4": Kind(config={"text_config.per_layer_config": ...}, images={"max_soft_tokens": 70}),
    "janus": Kind(config={"vq_config.base_channels": 32, "vq_config.channel_multiplier": [1, 1]}),
    "ernie4_5_vl_moe": Kind(config={"text_config.rope_parameters": _ROPE}),
    "hunyuan_vl": Kind(
        config={"text_config.head_dim": 8, "text_config.rope_parameters": _ROPE},
        frame="<image_start_token>{}<image_end_token>",
    ),
    "hy_v4_vl": Kind(),
    "qwen4_exp": Kind(
        config={
            "text_config.indexer_n_heads": 2,
            "text_config.indexer_kv_heads": 1,
            "text_config.indexer_head_dim": 8,
            "text_config.indexer_budget": 8,
            "text_config.indexer_compress_ratio": 4,
        },
        images={"patch_size": 16},
    ),
}

_CODES = "its images are tokens of a codebook, with a vocabulary to match"
_NO_TOKEN = "its processor does not define the placeholder tokens of an image"
_FIELDS = "sizes of its configuration hang together in ways that names do not tell"

NOT_BUILT: Mapping[str, str] = {
    **dict.fromkeys(("chameleon", "emu3"), _CODES),
    **dict.fromkeys(("blip", "blip-2", "git", "instructblip", "pix2struct", "pp_chart2table"), _NO_TOKEN),
    **dict.fromkeys(("idefics", "idefics2", "udop"), _NO_TOKEN),
    **dict.fromkeys(("cohere_compass", "deepseek_ocr2", "deepseek_vl_hybrid", "dots3_note", "glm5_next"), _FIELDS),
    **dict.fromkeys(("granite4_vision", "mistral_large4", "ovis2"), _FIELDS),
    **dict.fromkeys(("florence2", "t5gemma2"), "an encoder and a decoder: refused"),
    **dict.fromkeys(("minicpmv4_6", "minicpmv4_7"), "its processor needs a video processor, and that torchvision"),
    "aria": "its image processor makes 490 x 490 pixels at least, of which a pass takes 25 s here",
    "fuyu": "its image processor on Pillow fails on any image in transformers 5.23: refused",
    "gemma3n": "its vision tower needs timm",
    "got_ocr2": "transformers' own random tiny model makes the same features of any image",
    "qianfan_ocr": "its processor counts other tokens than it writes: refused",
    "shieldgemma2": "its processor takes its own conversations only: refused",
    "smolvlm": "its processor needs num2words",
}
"""Types with an image processor on Pillow that are not in `KINDS`, and why."""

SMALL: Mapping[str, int | None] = {
    **dict.fromkeys(
        "hidden_size d_model embed_dim projection_dim vision_output_dim out_hidden_size decoder_hidden_size "
        "mm_hidden_size projector_hidden_size hidden_dim vision_hidden_size encoder_hidden_size output_dim".split(),
        32,
    ),
    **dict.fromkeys(
        "intermediate_size encoder_ffn_dim decoder_ffn_dim intermediate_size_mlp ffn_dim moe_intermediate_size "
        "shared_expert_intermediate_size mlp_dim d_ff projector_intermediate_size dense_intermediate_size".split(),
        64,
    ),
    **dict.fromkeys("num_hidden_layers depth encoder_layers decoder_layers num_layers".split(), 2),
    **dict.fromkeys("num_attention_heads num_heads encoder_attention_heads decoder_attention_heads".split(), 4),
    **dict.fromkeys(
        "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim global_head_dim linear_key_head_dim "
        "linear_value_head_dim query_pre_attn_scalar q_lora_rank kv_lora_rank".split(),
        8,
    ),
    **dict.fromkeys("num_local_experts num_experts n_routed_experts moe_num_experts linear_num_value_heads".split(), 4),
    **dict.fromkeys("num_key_value_heads num_experts_per_tok moe_k linear_num_key_heads".split(), 2),
    **dict.fromkeys("n_group topk_group n_shared_experts moe_num_shared_experts".split(), 1),
    "max_position_embeddings": 4096,
    "sliding_window": 16,
    "num_position_embeddings": 64,
    "audio_config": None,
}


def built(name: str) -> tuple[Any, Any]:
    """A random model of a type in evaluation mode, and its processor."""
    processor = _processor(name)
    config = _config(name, len(processor.tokenizer) + 8)
    for part in (config, config.get_text_config()):
        for key in ("image_token_id", "image_token_index"):
            if hasattr(part, key):
                setattr(part, key, _of_features(name, processor))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config).eval()
        with torch.no_grad():
            for tensor in model.parameters():
                if not tensor.any():  # a gate or a projection that is shut at first: nothing would be seen through it
                    tensor.normal_(0, 0.5)
    return model, processor


def pictures_of(name: str, processor: Any) -> ImageReader:
    """How a type reads images."""
    return ImageReader(processor, KINDS[name].frame.format(processor.image_token), MediaOptions())


def llama4() -> Any:
    """A random tiny Llama 4, whose image processor needs torchvision: of one image of 28 x 28 it makes one token."""
    name = "llama4"
    default = {key: value for key, value in AutoConfig.for_model(name).to_dict().items() if key != "model_type"}
    fields = _shrunk(default, 96, {})
    vision = {"image_size": 28, "patch_size": 14, "projector_input_dim": 32, "projector_output_dim": 32}
    fields["vision_config"] |= vision | {"intermediate_size": 128, "vision_output_dim": 32}
    text = {"no_rope_layers": [1, 0], "moe_layers": [1], "layer_types": ["chunked_attention", "full_attention"]}
    fields["text_config"] |= text
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(AutoConfig.for_model(name, **fields)).eval()


def _of_features(name: str, processor: Any) -> int:
    """The token that a model replaces by an image's features: of all that the processor writes, most of it."""
    [text] = pictures_of(name, processor)._texts([Image.new("RGB", (64, 64), "grey")])
    [(token, _)] = Counter(processor.tokenizer(text, add_special_tokens=False).input_ids).most_common(1)
    return int(token)


def processor_class(name: str) -> Any:
    """transformers' processor of a type; None where it has none."""
    if (known := PROCESSOR_MAPPING_NAMES.get(name)) is None:
        return None
    return _pixtral() if known == "PixtralProcessor" else processor_class_from_name(known)


def pillow_class(name: str) -> str | None:
    """The image processor on Pillow of a type; None where transformers has none."""
    known = IMAGE_PROCESSOR_MAPPING_NAMES.get(name)
    return known.get("pil") if isinstance(known, dict) else known


def _processor(name: str) -> Any:
    kind = processor_class(name)
    images = get_image_processor_class_from_name(str(pillow_class(name)))(**KINDS[name].images)
    parts = {"image_processor": images, "tokenizer": _tokenizer(kind)}
    with _unchecked():
        return kind(**{part: parts.get(part) for part in kind.get_attributes()}, **KINDS[name].processor)


_LITERAL = re.compile(r"""["'](<[^<>"'\s]{1,40}>|\[[A-Z_]+\]|\|[A-Z]+\|)["']""")
_OWN = ("bos_token", "eos_token", "pad_token", "unk_token", "add_bos_token", "add_eos_token")


def _tokenizer(kind: Any) -> Any:
    """With every token that the processor's code names, as text or as a part of its tokenizer."""
    tokenizer, source = tiny_tokenizer(), inspect.getsource(sys.modules[kind.__module__])
    parts = re.findall(r"tokenizer\.(\w+_token)(?:_id)?\b", source) + re.findall(r'tokenizer, "(\w+_token)"', source)
    named = {part: f"<{part}>" for part in dict.fromkeys(parts) if part not in _OWN}
    tokens = [*dict.fromkeys(_LITERAL.findall(source)), *named.values()]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    own = {name: getattr(tokenizer, name) for name in ("eos_token", "pad_token", "chat_template")}
    return type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer,
        extra_special_tokens=named,
        bos_token="<|im_start|>",
        unk_token="<|im_start|>",
        **own,
    )


def _config(name: str, vocabulary: int) -> Any:
    default = AutoConfig.for_model(name).to_dict()
    if default.get("vision_config", {}) is None:
        default["vision_config"] = AutoConfig.for_model(f"{name}_vision").to_dict()
    fields = _shrunk({key: value for key, value in default.items() if key != "model_type"}, vocabulary, {})
    for path, value in KINDS[name].config.items():
        *way, last = path.split(".")
        place = fields
        for step in way:
            place = place[step]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return AutoConfig.for_model(name, **fields)


def _shrunk(fields: Mapping[str, Any], vocabulary: int, ids: dict[str, int]) -> dict[str, Any]:
    return {name: _small(name, value, vocabulary, ids) for name, value in fields.items()}


def _small(name: str, value: Any, vocabulary: int, ids: dict[str, int]) -> Any:
    if isinstance(value, dict) and (name.endswith("_config") or "model_type" in value):
        return None if name in SMALL else _shrunk(value, vocabulary, ids)
    if name in SMALL and type(value) is int:
        return SMALL[name]
    if name in SMALL and isinstance(value, list | tuple) and value and type(value[0]) is int:
        return [SMALL[name]] * min(len(value), 2)
    if name in ("vocab_size", "vocab_size_per_layer_input"):
        return vocabulary
    if name in ("layer_types", "mlp_layer_types") and value:
        return (list(dict.fromkeys(value)) * 2)[:2]  # one of each kind
    if name.endswith(("token_id", "token_index")) and type(value) is int:
        return ids.setdefault(name.replace("token_index", "token_id"), len(ids) + 5)
    if isinstance(value, dict) and "mrope_section" in value:
        return {**value, "mrope_section": [1, 1, 2]}
    return value
