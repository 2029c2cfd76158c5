"""Opens image files upright and in RGB, as ``transformers.image_utils.load_image`` does.

Greyscale of more than eight bits is scaled to eight bits. load_image clips it at 255, which turns it white.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ftcore.errors import RowError

if TYPE_CHECKING:
    from PIL.Image import Image

BITS_PER_SAMPLE = 258
"""TIFF's tag."""


def open_image(path: str, field: str) -> Image:
    """Opens the first frame of an image, upright and in RGB.

    Args:
        path: path of the file.
        field: field of the row, for the error.

    Raises:
        RowError: the file is not an image, is damaged, or its white level is unknown.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            white = _white(file)
            if white is None:
                reason = f"{path} is a 32-bit greyscale image (mode {file.mode}), whose white level is unknown"
                raise RowError(reason, field=field, cure="save it with 8 or 16 bits per pixel")
            upright = ImageOps.exif_transpose(file)
            return (upright if white == 255 else _eight_bits(upright, white)).convert("RGB")
    except RowError:
        raise
    except Exception as error:  # Pillow raises any exception for damaged files
        reason = f"{path} cannot be read as an image: {' '.join(str(error).split()) or type(error).__name__}"
        raise RowError(reason, field=field, cure="repair the file, or remove the row") from error


def _white(file: Any) -> int | None:
    """The pixel value of white; None if unknown."""
    if file.mode.startswith("I;16"):
        bits = getattr(file, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))  # TIFF has 12 bits in this mode as well
        return (1 << int(bits[0])) - 1
    if file.mode == "I" and file.format == "PPM":
        return 65535  # Pillow scales the values to this range
    return None if file.mode in ("I", "F") else 255


def _eight_bits(image: Image, white: int) -> Image:
    from PIL import Image

    numbers = np.asarray(image).astype(np.float64) * (255 / white)
    return Image.fromarray(numbers.round().clip(0, 255).astype(np.uint8))
