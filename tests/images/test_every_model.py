"""All model types that transformers lists as image-text models: their class, their loss, their images, their answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import every_model
import numpy as np
import pytest
import seeing_models
import torch
import transformers
from every_model import KINDS, NOT_BUILT, pictures_of, pillow_class, processor_class
from packaging.version import Version
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from ft_plugins.models.classes import automatic_class
from ftcore.data.multimodal.images import OF_IMAGES, ReadImage
from ftcore.errors import UsageError
from ftcore.training.batching.collators import Batch, collate
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.forward.dependence import check_images

SEEING = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
READABLE = {name for name in SEEING if processor_class(name) is not None and pillow_class(name) is not None}
LISTED_FOR = Version("5.24")
"""The transformers whose types are listed; an older one lacks some of them."""
BOTH = sorted(SEEING & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


@pytest.mark.parametrize("name", BOTH)
def test_of_two_classes_the_one_that_reads_images_is_loaded(name: str) -> None:
    whole, text = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name], MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]
    assert automatic_class({"model_type": name}) is AutoModelForImageTextToText
    assert automatic_class({"model_type": name, "architectures": [whole]}) is AutoModelForImageTextToText
    only_text = automatic_class({"model_type": name, "architectures": [text]})
    assert only_text is (AutoModelForImageTextToText if whole == text else AutoModelForCausalLM)
    assert automatic_class({"model_type": name}, scores=True) is AutoModelForSequenceClassification


def test_text_models_and_unknown_ones_are_causal_language_models() -> None:
    others = [*sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - SEEING), "of_a_plugin"]
    assert {automatic_class({"model_type": name}) for name in others} == {AutoModelForCausalLM}


def test_every_type_is_tried_or_has_a_reason() -> None:
    """Types without a processor, or whose image processor needs torchvision, read no images here."""
    elsewhere = {kind.model_type or kind.name for kind in seeing_models.KINDS.values()}
    tried = KINDS.keys() | elsewhere
    assert not tried & NOT_BUILT.keys()
    listed = tried | NOT_BUILT.keys()
    if Version(transformers.__version__) < LISTED_FOR:
        listed &= READABLE
    assert sorted(listed) == sorted(READABLE)


@pytest.fixture
def image(tmp_path: Path) -> Any:
    """``image(n)``: a file of noise, another one for each number."""

    def make(number: int) -> Path:
        path = tmp_path / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        return path

    return make


def _batch(pictures: Any, path: Path, answer: str = " a bird sings") -> Batch:
    with Image.open(path) as file:
        written = pictures.frame.replace(pictures.processor.image_token, pictures._texts([file.convert("RGB")])[0])
    tokenizer = pictures.processor.tokenizer
    prompt, whole = (tokenizer(f"Look {written}{end}", add_special_tokens=False).input_ids for end in ("", answer))
    ids, weights = np.array(whole), np.zeros(len(whole), np.float32)
    weights[len(prompt) :] = 1
    batch = collate([{"input_ids": ids, "weights": weights, "index": 0}])
    return batch | {"images": [pictures.inputs([ReadImage.of(str(path))], ids, weights)]}


def _own_loss(model: Any, pictures: Any, path: Path, batch: Batch) -> float:
    """transformers' processor and model by themselves."""
    with Image.open(path) as file:
        text = f"Look {pictures.frame} a bird sings"
        own = pictures.processor(text=[text], images=[file.convert("RGB")], return_tensors="pt")
    assert own["input_ids"].tolist() == batch["input_ids"].tolist()
    more = {} if "mm_token_type_ids" in own else _kinds(model, batch)
    logits = model(**own, **more).logits[0, batch["positions"]].float()
    labels = batch["labels"][0, batch["positions"]]
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()


def _kinds(model: Any, batch: Batch) -> dict[str, Any]:
    """What a model asks for with images and its processor leaves to ``apply_chat_template``."""
    asked = type(model).__name__ == "Cosmos3EdgeForConditionalGeneration"
    return {"mm_token_type_ids": batch["images"][0][OF_IMAGES].long()} if asked else {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in KINDS if name in READABLE])
def test_the_loss_is_transformers_own_and_follows_the_image_and_not_the_answer(name: str, image: Any) -> None:
    model, processor = every_model.built(name)
    pictures = pictures_of(name, processor)
    pictures.try_out()
    scorer = CausalLMForward(model)
    scorer.probe_capabilities()
    batches = [_batch(pictures, image(number)) for number in (1, 2)]
    with torch.no_grad():
        losses = [scorer.weighted_nll(batch).item() for batch in batches]
        own = [_own_loss(model, pictures, image(number), batches[number - 1]) for number in (1, 2)]
    assert losses == pytest.approx(own, abs=1e-4)
    assert losses[0] != losses[1]
    assert own[0] != own[1]
    assert scorer.unseen is None  # the guard has looked: another image moved the logits, a later token did not


def test_llama4_by_hand() -> None:
    """Pixels of our own, since its image processor needs torchvision."""
    if transformers.__version__ == "5.24.0":
        pytest.skip("its forward pass ends in an AttributeError: the text model's output has no image_outputs")
    model = every_model.llama4()
    scorer, token = CausalLMForward(model), model.config.image_token_id
    scorer.probe_capabilities()
    ids = np.array([40, 41, token, 42, 43, 44])
    row = {"input_ids": ids, "weights": np.array([0, 0, 0, 0, 1, 1], np.float32), "index": 0}
    of_images = torch.from_numpy(ids == token)[None]
    losses = []
    for number in (1, 2):
        pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(number))
        batch = collate([row]) | {"images": [{"pixel_values": pixels, OF_IMAGES: of_images}]}
        with torch.no_grad():
            losses.append(scorer.weighted_nll(batch).item())
            own = model(input_ids=torch.from_numpy(ids)[None], pixel_values=pixels).logits[0, 3:5].float()
        expected = torch.nn.functional.cross_entropy(own, torch.tensor([43, 44]), reduction="sum").item()
        assert losses[-1] == pytest.approx(expected, abs=1e-5)
    assert losses[0] != losses[1]
    assert scorer.unseen is None


@pytest.mark.parametrize("fused", [True, False])
def test_a_model_that_gives_the_same_loss_for_any_image_ends_the_run(fused: bool, image: Any) -> None:
    model, processor = every_model.built("llava")
    torch.nn.init.zeros_(model.model.multi_modal_projector.linear_2.weight)
    scorer = CausalLMForward(model)
    scorer.fused = fused
    with pytest.raises(UsageError, match="LlavaForConditionalGeneration gives the same loss for any image"):
        scorer.weighted_nll(_batch(pictures_of("llava", processor), image(1)))


def test_a_model_that_takes_no_images_ends_the_run(image: Any) -> None:
    model, processor = every_model.built("llava")
    batch = _batch(pictures_of("llava", processor), image(1))
    text = AutoModelForCausalLM.from_config(model.config.text_config)
    with pytest.raises(UsageError, match="LlamaForCausalLM takes none of what its processor makes of an image"):
        CausalLMForward(text).weighted_nll(batch)


def test_a_row_whose_labels_come_before_its_image_tells_nothing(image: Any) -> None:
    model, processor = every_model.built("llava")
    scorer, batch = CausalLMForward(model), _batch(pictures_of("llava", processor), image(1))
    early = batch | {"positions": torch.tensor([0])}
    assert not check_images(scorer, early, 1e-4)
    scorer.logits(early)
    assert scorer.unseen is not None
    scorer.logits(batch)
    assert scorer.unseen is None


def test_a_model_that_reads_the_answer_before_it_says_it_ends_the_run() -> None:
    """BERT without ``is_decoder`` is a causal language model to transformers' auto class, and reads both ways."""
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with pytest.raises(
        UsageError, match="BertLMHeadModel is not causal: it predicts a token from tokens that follow it"
    ):
        CausalLMForward(BertLMHeadModel(BertConfig(vocab_size=96, **sizes))).probe_capabilities()


def test_a_mask_that_lets_the_prompt_see_the_answer_ends_the_run(image: Any, tmp_path: Path) -> None:
    """PaliGemma with token types of 0 everywhere, which is what Gemma 3's meaning of them gave."""
    from ftcore.data.multimodal.images import ImageReader

    folder = seeing_models.seeing_model("paligemma", tmp_path / "model")
    pictures = seeing_models.pictures_of("paligemma", folder)
    assert isinstance(pictures, ImageReader)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    batch = _batch(pictures, image(1))
    kinds = batch["images"][0]["token_type_ids"]
    answer = int(batch["positions"][0]) + 1
    assert kinds.tolist() == [[0] * answer + [1] * (kinds.shape[1] - answer)]
    CausalLMForward(model).weighted_nll(batch)
    batch["images"][0]["token_type_ids"] = torch.zeros_like(kinds)
    with pytest.raises(UsageError, match="PaliGemmaForConditionalGeneration is not causal"):
        CausalLMForward(model).weighted_nll(batch)
