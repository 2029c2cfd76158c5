"""Every processor of transformers that reads images: texts and tensors are those of its own call, or it is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.auto import image_processing_auto as image_classes
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

from ft_plugins.models.processors import _unchecked
from ftcore.api.option_groups import MediaOptions
from ftcore.data.chat_template.rendered import Rendered
from ftcore.data.multimodal.images import OF_IMAGES, ImageReader, ReadImage
from ftcore.errors import RowError
from ftcore.testing import tiny_tokenizer

TYPES = sorted(set(PROCESSOR_MAPPING_NAMES) & set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))
_LLAVA = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "llava": _LLAVA,
    "vipllava": _LLAVA,
    "llava_next": _LLAVA,
    "llava_next_video": _LLAVA,
    "llava_onevision": {
        "num_image_tokens": 729,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
    },
    "granite4_vision": {**_LLAVA, "downsample_rate": "1/2"},
}
"""What a processor has no value for by itself."""
IMAGES: Mapping[str, Mapping[str, Any]] = {"paligemma": {"image_seq_length": 16}}
UNTOLD = {"blip-2", "idefics2"}
"""Processors that do not tell what they write for an image."""
_OF_TEXT = {"input_ids", "attention_mask", "labels", "text_replacement_offsets"}


def _tokenizer(tokens: Mapping[str, str]) -> Any:
    base = tiny_tokenizer(tuple(tokens.values()))
    kept = dict.fromkeys(("eos_token", "pad_token", "bos_token", "unk_token"), base.eos_token)
    return type(base)(tokenizer_object=base.backend_tokenizer, extra_special_tokens=dict(tokens), **kept)


def _processor(name: str) -> Any:
    """The processor of a model type, on Pillow, with a tokenizer that has the tokens it asks for; None for none."""
    kind = processor_class_from_name(PROCESSOR_MAPPING_NAMES[name])
    listed = image_classes.IMAGE_PROCESSOR_MAPPING_NAMES.get(name)
    found = listed.get("pil") if isinstance(listed, Mapping) else listed
    if not found:
        return None
    try:
        images = image_classes.get_image_processor_class_from_name(found)(**IMAGES.get(name, {}))
    except ImportError:  # torchvision, which one of transformers 5.21 wants although it reads by Pillow
        return None
    for key, value in IMAGES.get(name, {}).items():
        setattr(images, key, value)
    tokens = {"image_token": "<|image_token|>"}
    while True:
        parts = {"image_processor": images, "tokenizer": _tokenizer(tokens)}
        try:
            with _unchecked():
                given = [parts.get(part) for part in kind.get_attributes()]
                return kind.from_args_and_dict(given, dict(SETTINGS.get(name, {})))
        except (AttributeError, ValueError) as error:
            missing = re.search(r"attribute '?(\w+?)(?:_ids?)?(?:'|$)", str(error))
            if missing is None or missing[1] in tokens:
                return None
            tokens[missing[1]] = f"<|{missing[1]}|>"
        except (ImportError, KeyError):
            return None


def _images(tmp_path: Path) -> list[str]:
    generator, paths = np.random.default_rng(0), []
    for name, size in (("wide", (700, 300)), ("high", (250, 600))):
        paths.append(str(tmp_path / f"{name}.png"))
        Image.fromarray(generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(paths[-1])
    return paths


BUILT = MappingProxyType(
    {name: made for name in TYPES if (made := _processor(name)) and getattr(made, "image_token", None)}
)


def test_most_of_them_can_be_made() -> None:
    assert len(BUILT) > 45, sorted(set(TYPES) - set(BUILT))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", BUILT)
def test_as_the_processor_itself(name: str, count: int, tmp_path: Path) -> None:
    processor, paths = BUILT[name], _images(tmp_path)[:count]
    token = processor.image_token
    pictures = ImageReader(processor, f"[{token}]", MediaOptions())
    opened = [Image.open(path).convert("RGB") for path in paths]
    rendered = Rendered("a" + "b<image>" * count + "c", ())
    try:
        own = processor(text=["a" + f"b[{token}]" * count + "c"], images=[opened], return_tensors="pt")
        refusal = NotImplementedError.__name__ if name in UNTOLD else ""
    except Exception as error:
        refusal = type(error).__name__
    if refusal:
        with pytest.raises(RowError, match=f"the model's processor refuses .*{refusal}"):
            pictures.placed(rendered, paths)
        return
    text = pictures.placed(rendered, paths).text
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    whole = own["input_ids"][0].tolist()
    assert any(whole[start : start + len(ids)] == ids for start in range(len(whole) - len(ids) + 1))
    made = pictures.inputs([ReadImage.of(path) for path in paths], np.array(ids), np.zeros(len(ids)))
    assert made.keys() - {OF_IMAGES} == own.keys() - _OF_TEXT
    for key in own.keys() - _OF_TEXT:
        if own[key].shape[-1] != own["input_ids"].shape[-1] or len(ids) == own["input_ids"].shape[-1]:
            torch.testing.assert_close(made[key], own[key], rtol=0, atol=0)


@pytest.mark.slow
def test_internvl_takes_the_tiles_that_its_processor_takes(tmp_path: Path) -> None:
    processor, paths = BUILT["internvl"], _images(tmp_path)
    pictures = ImageReader(processor, processor.image_token, MediaOptions())
    for path in paths:
        text = pictures.placed(Rendered("<image>", ()), [path]).text
        assert text.count(processor.image_token) == 11 * 256
        ids = np.array(processor.tokenizer(text, add_special_tokens=False).input_ids)
        made = pictures.inputs([ReadImage.of(path)], ids, np.zeros(len(ids)))
        assert len(made["pixel_values"]) == 11  # 5 x 2 of the wide image, 2 x 5 of the high one, and the whole of each
