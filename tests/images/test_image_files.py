"""Files of every kind, against transformers' own reader of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from ftcore.data.multimodal.image_files import open_image
from ftcore.errors import RowError

SIZE = (13, 7)
GREY = np.linspace(0, 65535, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE[1], SIZE[0])
COLOUR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 4), dtype=np.uint8), "RGBA")


def _exif(number: int) -> Any:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def _paletted() -> Image.Image:
    image = COLOUR.convert("RGB").quantize(8)
    image.info["transparency"] = 3
    return image


SAME: dict[str, Callable[[Path], None]] = {
    "1.png": lambda path: COLOUR.convert("1").save(path),
    "L.png": lambda path: COLOUR.convert("L").save(path),
    "LA.png": lambda path: COLOUR.convert("LA").save(path),
    "P.png": lambda path: COLOUR.convert("RGB").quantize(8).save(path),
    "P transparent.png": lambda path: _paletted().save(path, transparency=3),
    "P transparent.gif": lambda path: _paletted().save(path, transparency=3),
    "RGB.png": lambda path: COLOUR.convert("RGB").save(path),
    "RGBA.png": lambda path: COLOUR.save(path),
    "RGBA.webp": lambda path: COLOUR.save(path, lossless=True),
    "RGB.jpg": lambda path: COLOUR.convert("RGB").save(path),
    "CMYK.jpg": lambda path: COLOUR.convert("CMYK").save(path),
    "L.tif": lambda path: COLOUR.convert("L").save(path),
    "YCbCr.tif": lambda path: COLOUR.convert("YCbCr").save(path),
    "LAB.tif": lambda path: Image.new("LAB", SIZE, (120, 90, 40)).save(path),
    "frames.gif": lambda path: COLOUR.convert("RGB").save(path, save_all=True, append_images=[Image.new("RGB", SIZE)]),
    **{
        f"turned {number}.jpg": lambda path, number=number: COLOUR.convert("RGB").save(path, exif=_exif(number))  # type: ignore[misc]
        for number in range(1, 9)
    },
}


@pytest.mark.parametrize("name", SAME)
def test_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    SAME[name](tmp_path / name)
    found = open_image(str(tmp_path / name), "")
    with Image.open(tmp_path / name) as file:
        expected = load_image(file)
    assert (found.mode, found.size) == (expected.mode, expected.size) == ("RGB", found.size)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert (found.size == SIZE) == (name not in {f"turned {number}.jpg" for number in (5, 6, 7, 8)})


@pytest.mark.parametrize("name", ["16.png", "16.tif", "16.ppm", "16.jp2"])
def test_grey_of_sixteen_bits_is_scaled(name: str, tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / name)
    found = np.asarray(open_image(str(tmp_path / name), ""))
    expected = np.round(GREY / 257).astype(np.uint8)
    assert len(np.unique(expected)) == GREY.size
    assert np.abs(found.astype(int) - expected[..., None]).max() == 0
    assert (np.asarray(load_image(str(tmp_path / name)))[1:] == 255).all()  # which is why it is read otherwise


def test_turned_grey_of_sixteen_bits_is_upright(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=_exif(6))
    found = np.asarray(open_image(str(tmp_path / "a.png"), ""))
    np.testing.assert_array_equal(found[..., 0], np.rot90(np.round(GREY / 257).astype(np.uint8), -1))


def test_grey_of_twelve_bits_is_scaled(tmp_path: Path) -> None:
    """A TIFF of two pixels, 0xFFF and 0x800, written by hand: Pillow reads such and writes none."""
    entries = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    fields = b"".join(
        tag.to_bytes(2, "little") + b"\x04\x00\x01\x00\x00\x00" + value.to_bytes(4, "little") for tag, value in entries
    )
    head = b"II*\x00" + (12).to_bytes(4, "little") + b"\xff\xf8\x00\x00"
    (tmp_path / "a.tif").write_bytes(head + len(entries).to_bytes(2, "little") + fields + bytes(4))
    assert np.asarray(open_image(str(tmp_path / "a.tif"), ""))[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("numbers", [GREY.astype(np.int32), GREY.astype(np.float32) / 65535])
def test_grey_without_a_known_white_is_refused(numbers: Any, tmp_path: Path) -> None:
    Image.fromarray(numbers).save(tmp_path / "a.tif")
    with pytest.raises(RowError, match=r"is a 32-bit greyscale image \(mode [IF]\), whose white level is unknown"):
        open_image(str(tmp_path / "a.tif"), "images[0]")


@pytest.mark.parametrize("name", [*SAME, "16.png"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_cut_file_is_read_or_refused(name: str, share: float, tmp_path: Path) -> None:
    SAME.get(name, lambda path: Image.fromarray(GREY).save(path))(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    refusal = None
    try:
        assert open_image(str(tmp_path / name), "images[0]").mode == "RGB"
    except RowError as error:
        refusal = error
    if share <= 0.1:
        assert refusal
    if refusal:
        assert refusal.field == "images[0]"
        assert str(tmp_path / name) in refusal.reason
