"""Images in conversations: their placeholder tokens and the inputs of the model.

transformers' processors expand the placeholder of an image to the image's tokens (``ProcessorMixin._process_images``)
and turn its pixels into tensors. Both depend on the image's size. Images are therefore opened twice: when rows are
tokenised and when a batch is built. Tables store only the paths.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ftcore.data.chat_template.rendered import Rendered, Span
from ftcore.data.multimodal.image_files import open_image
from ftcore.data.multimodal.media_files import PLACEHOLDERS
from ftcore.errors import RowError
from ftcore.utils.hashing import json_sha256

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

    from ftcore.api.option_groups import MediaOptions
    from ftcore.api.plan import Plan

log = logging.getLogger(__name__)

PLACEHOLDER = PLACEHOLDERS["images"]
OF_IMAGES = "of_images"
_OF_TEXT = ("input_ids", "attention_mask", "labels")
"""Processor outputs for text, which the batch already has."""


class ReadImage(NamedTuple):
    """An image file with its size and modification time at tokenisation."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> ReadImage:
        """Reads size and modification time of the file.

        Raises:
            OSError: the file is missing.
        """
        found = Path(path).stat()
        return cls(path, found.st_size, found.st_mtime_ns)

    @property
    def changed(self) -> bool:
        """Whether the file was changed or removed."""
        try:
            return ReadImage.of(self.path) != self
        except OSError:
            return True


class ImageReader:
    """Tokens and inputs of images for a model.

    Args:
        processor: transformers' processor of the model.
        frame: text of the model's chat template for an image, including the processor's image token.
        limits: limits on the size of an image.
    """

    def __init__(self, processor: Any, frame: str, limits: MediaOptions) -> None:
        assert processor.image_token in frame
        self.processor, self.frame, self.limits = processor, frame, limits

    @classmethod
    def of(cls, plan: Plan, tokenizer: PreTrainedTokenizerBase) -> ImageReader | None:
        """The image reader of the plan's model; None if the model reads no images or its frame is unknown."""
        processor = plan.plugins.hook.ft_load_processor(plan=plan, tokenizer=tokenizer)
        if processor is None:
            return None
        known = plan.family.component.image if plan.family else ""
        # a model may have another processor than its family, with another image token
        frame = known if str(processor.image_token) in known else frame_of(processor)
        if not frame:
            name = plan.model.model_name_or_path
            log.warning("the chat template of %s does not render images: rows with images are refused", name)
            return None
        pictures = cls(processor, frame, plan.media)
        try:
            pictures.try_out()
        except Exception as error:  # processors raise any exception
            name = type(processor).__name__
            log.warning("%s fails, so rows with images are refused: %s", name, _one_line(error))
            return None
        return pictures

    def try_out(self) -> None:
        """Reads a small test image, so that a processor that fails is reported before any row."""
        from PIL import Image

        images = [Image.new("RGB", (64, 64), "grey")]
        tokenizer = self.processor.tokenizer
        ids = tokenizer(self.frame.replace(self.processor.image_token, self._texts(images)[0])).input_ids
        self._processor_outputs(images, np.array(ids), 0)

    @cached_property
    def tokens(self) -> npt.NDArray[np.int64]:
        """Token ids used only for images; they are never trained."""
        from PIL import Image

        tokenizer = self.processor.tokenizer
        written = self._texts([Image.new("RGB", (64, 64), "grey")])[0]
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        special &= {*tokenizer(written, add_special_tokens=False).input_ids}
        own = tokenizer.convert_tokens_to_ids(self.processor.image_token)
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id, None}
        return np.array(sorted({own, *self.processor.image_token_ids, *special} - ends), dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that determines the tokens and inputs of an image."""
        config = self.processor.to_dict()
        parts = [config, self.frame, self.limits.image_max_pixels, self.limits.image_min_pixels]
        return json_sha256(parts, default=str)

    def placed(self, rendered: Rendered, paths: Sequence[str]) -> Rendered:
        """Replaces each ``<image>`` in the text by the tokens of its image, in order.

        Raises:
            RowError: an image cannot be read, the processor refuses it, or the template does not render every
                placeholder.
        """
        starts = _find_all(rendered.text, PLACEHOLDER)
        if len(starts) != len(paths):
            reason = f"the chat template renders {PLACEHOLDER} {len(starts)} times for {len(paths)} images"
            raise RowError(reason, field="images", cure="choose the template that the model was trained with")
        images = [self._opened(path, f"images[{n}]") for n, path in enumerate(paths)]
        try:
            tokens = self._texts(images)
        except Exception as error:  # processors raise different exceptions
            raise self._refusal(images, paths, error) from error
        texts = [self.frame.replace(self.processor.image_token, text) for text in tokens]
        return _replaced(rendered, starts, texts, paths)

    def inputs(self, pictures: Sequence[ReadImage], ids: npt.NDArray[Any], weights: npt.NDArray[Any]) -> dict[str, Any]:
        """The model inputs of one row besides its tokens, from the model's processor.

        Args:
            pictures: the images of the row, in order.
            ids: token ids of the row, ``[T]``.
            weights: loss weights of the tokens, ``[T]``. The first trained token is the start of the answer. Some
                processors need it: PaliGemma attends to the prompt in both directions.

        Returns:
            The processor's tensors, such as ``pixel_values``, and `OF_IMAGES`, bool ``[1, T]``, true at image
            tokens.

        Raises:
            RowError: an image was removed or changed after its row was tokenised.
        """
        for picture in pictures:
            if picture.changed:
                raise RowError(f"{picture.path} was changed or removed during the run", cure="start the run again")
        images = [self._opened(picture.path, picture.path) for picture in pictures]
        trained = np.flatnonzero(weights)
        try:
            return self._processor_outputs(images, ids, int(trained[0]) if len(trained) else len(ids))
        except Exception as error:
            raise self._refusal(images, [picture.path for picture in pictures], error) from error

    def _processor_outputs(self, images: Sequence[Image], ids: npt.NDArray[Any], answer: int) -> dict[str, Any]:
        """The processor's outputs for a row with these tokens, ``answer`` of which precede the answer."""
        import torch
        from transformers import TensorType

        processor = copy.copy(self.processor)
        processor.tokenizer = _Tokenized(self.processor.tokenizer, ids.tolist(), answer)
        result = processor(text=[self.frame * len(images)], images=list(images), return_tensors=TensorType.PYTORCH)
        of_images = torch.from_numpy(np.isin(ids, self.tokens))[None]
        return {name: value for name, value in result.items() if name not in _OF_TEXT} | {OF_IMAGES: of_images}

    def _texts(self, images: Sequence[Image]) -> list[str]:
        """The text that the processor substitutes for each image token."""
        from transformers import TensorType

        own, text = self.processor, self.frame * len(images)
        options = {"return_tensors": TensorType.PYTORCH, "return_text_replacement_offsets": True}
        if replaced := own(text=[text], images=list(images), **options).get("text_replacement_offsets"):
            return [str(one["replacement"]) for one in replaced[0] if one["type"] == "image"]
        # Mllama's processor does not return it
        merged = own._merge_kwargs(tokenizer_init_kwargs=own.tokenizer.init_kwargs, return_tensors=TensorType.PYTORCH)
        texts: list[str] = own._process_images([list(images)], **merged["images_kwargs"])[1]
        return texts

    def _refusal(self, images: Sequence[Image], paths: Sequence[str], error: Exception) -> RowError:
        """The error for images that the processor refuses, with the first image that fails alone."""
        cure = "remove the row, or change the image"
        for number, (image, path) in enumerate(zip(images, paths, strict=True)):
            try:
                self._texts([image])
            except Exception as alone:
                reason = f"the model's processor refuses {path}, {image.width} x {image.height}: {_one_line(alone)}"
                return RowError(reason, field=f"images[{number}]", cure=cure)
        reason = f"the model's processor refuses the images of this row together: {_one_line(error)}"
        return RowError(reason, field="images", cure=cure)

    def _opened(self, path: str, field: str) -> Image:
        return self._sized(open_image(path, field))

    def _sized(self, image: Image) -> Image:
        """Scales to ``image_min_pixels`` .. ``image_max_pixels`` and keeps the aspect ratio, as LLaMA-Factory does."""
        pixels = image.width * image.height
        for over, limit in (
            (pixels > self.limits.image_max_pixels, self.limits.image_max_pixels),
            (pixels < self.limits.image_min_pixels, self.limits.image_min_pixels),
        ):
            if over:
                factor = sqrt(limit / pixels)
                return image.resize((max(int(image.width * factor), 1), max(int(image.height * factor), 1)))
        return image


def _one_line(error: Exception) -> str:
    """The message of a library's exception, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")[:300]


class _Tokenized:
    """Replaces the tokenizer of a processor and returns the known tokens of a row.

    Args:
        tokenizer: the tokenizer of the processor.
        ids: token ids of the row.
        answer: number of tokens before the answer.
    """

    def __init__(self, tokenizer: Any, ids: list[int], answer: int) -> None:
        self._tokenizer, self._ids, self._answer = tokenizer, ids, answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        from transformers import BatchEncoding

        result = {"input_ids": [self._ids], "attention_mask": [[1] * len(self._ids)]}
        if kwargs.get("return_token_type_ids"):  # the token types of a text pair
            result["token_type_ids"] = [[int(place >= self._answer) for place in range(len(self._ids))]]
        # some processors read the offsets; they are the same for the text alone as in the row
        return BatchEncoding(result, self._tokenizer(text, add_special_tokens=False).encodings)


def save_processor(processor: Any, folder: Path) -> None:
    """Saves the settings of processor and image processor in a model's folder, without the tokenizer."""
    processor.image_processor.save_pretrained(folder)
    settings = {name: value for name, value in processor.to_dict().items() if value is not None}
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")


def frame_of(processor: Any) -> str:
    """The text of the model's chat template for an image; empty without a template that renders images."""
    token = str(processor.image_token)
    if not (template := getattr(processor, "chat_template", None) or processor.tokenizer.chat_template):
        return ""
    parts = [{"type": "text", "text": "before"}, {"type": "image"}, {"type": "text", "text": "after"}]
    try:
        text = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], chat_template=template, tokenize=False
        )
    except Exception:  # a template without image support raises any exception
        return ""
    frame = text.partition("before")[2].partition("after")[0]
    return frame if token in frame else ""


def _find_all(text: str, part: str) -> list[int]:
    starts, start = [], text.find(part)
    while start >= 0:
        starts.append(start)
        start = text.find(part, start + len(part))
    return starts


def _replaced(rendered: Rendered, starts: Sequence[int], texts: Sequence[str], paths: Sequence[str]) -> Rendered:
    """Replaces pieces of the text and moves all spans."""
    pieces, position = [], 0
    for start, text in zip(starts, texts, strict=True):
        pieces += [rendered.text[position:start], text]
        position = start + len(PLACEHOLDER)
    grown = np.cumsum([0, *(len(text) - len(PLACEHOLDER) for text in texts)])

    def at(place: int) -> int:
        return place + int(grown[np.searchsorted(starts, place, side="left")])

    def moved(spans: Sequence[Span]) -> tuple[Span, ...]:
        return tuple(Span(at(span.start), at(span.end), span.message) for span in spans)

    inside = {start: start + len(PLACEHOLDER) for start in starts}  # LLaVA's placeholder is a control token
    literal = tuple((at(start), at(end)) for start, end in rendered.literal if inside.get(start) != end)
    text = "".join([*pieces, rendered.text[position:]])
    return replace(
        rendered, text=text, said=moved(rendered.said), read=moved(rendered.read), literal=literal, images=tuple(paths)
    )


Images = Mapping[int, Sequence[ReadImage]]
"""Row index in a table -> images of the row; only rows with images."""


def as_lines(images: Images, before: int = 0) -> bytes:
    """Encodes images as JSON lines; ``before`` is added to each row index."""
    return b"".join(
        json.dumps([row + before, *(list(picture) for picture in pictures)]).encode() + b"\n"
        for row, pictures in images.items()
    )


def from_lines(lines: bytes) -> Images:
    """Decodes the result of `as_lines`."""
    rows = [json.loads(line) for line in lines.splitlines()]
    return {row: tuple(ReadImage(*picture) for picture in pictures) for row, *pictures in rows}
