"""Every kind of TIFF that tifffile writes is read with the same pixels, or refused as unsupported."""

from __future__ import annotations

import io
import itertools
import struct
from collections import Counter
from typing import Any

import numpy as np
import pytest

from mri_edge.errors import InputError
from mri_edge.scans.readers import picture

tifffile = pytest.importorskip("tifffile", reason="tifffile writes the kinds that are read (group 'dev')")

HEIGHT, WIDTH = 48, 64
Array = np.ndarray[Any, Any]

# Photometric, samples, alpha or other extra samples.
LAYOUTS = [
    ("minisblack", 1, None),
    ("miniswhite", 1, None),
    ("minisblack", 2, "unassalpha"),
    ("minisblack", 2, "assocalpha"),
    ("minisblack", 2, "unspecified"),
    ("rgb", 3, None),
    ("rgb", 4, "unassalpha"),
    ("rgb", 4, "assocalpha"),
    ("rgb", 4, "unspecified"),
    ("separated", 4, None),
]
CODINGS = [
    (None, False),
    ("lzw", False),
    ("lzw", True),
    ("zlib", True),
    ("packbits", False),
    ("zstd", False),
    ("lzma", False),
]


def _samples(channels: int, dtype: str) -> Array:
    """A slope in each channel, over the full range of the type."""
    down, across = np.linspace(0, 0.5, HEIGHT)[:, None, None], np.linspace(0, 0.5, WIDTH)[None, :, None]
    slopes = (down + across + np.arange(channels) * 0.13) % 1
    return (slopes * (1 if dtype.startswith("f") else np.iinfo(dtype).max)).astype(dtype)


def _written(samples: Array, photometric: str, extra: str | None, **options: Any) -> bytes:
    file = io.BytesIO()
    if samples.shape[2] == 1:
        samples = samples[:, :, 0]
        options.pop("planarconfig")
    elif options["planarconfig"] == "separate":
        samples = np.moveaxis(samples, -1, 0)
    extras = {"extrasamples": [extra]} if extra else {}
    tifffile.imwrite(file, samples, photometric=photometric, metadata=None, **extras, **options)
    return file.getvalue()


def _wanted(samples: Array, photometric: str) -> Array:
    values = samples.astype(int) >> (8 * (samples.itemsize - 1))
    if photometric == "miniswhite":
        values = 255 - values
    if photometric == "separated":
        return ((255 - values[..., :3]) * (255 - values[..., 3:]) + 127) // 255
    return values[..., :3] if values.shape[2] >= 3 else np.repeat(values[..., :1], 3, 2)


def _is_read(bits: int, photometric: str, extra: str | None, planar: str, order: str, compression: str | None) -> bool:
    """Whether the documented rule supports this file: Pillow reads it correctly."""
    if bits == 16 and (photometric == "separated" or (photometric == "minisblack" and extra)):
        return False
    if bits == 16 and photometric == "miniswhite" and order == ">":
        return False
    if planar == "contig":
        return True
    if compression is None:
        return bits == 8 and extra is None
    return not (extra == "assocalpha" and photometric == "rgb")


@pytest.mark.parametrize(("photometric", "channels", "extra"), LAYOUTS)
@pytest.mark.parametrize("bits", [8, 16])
def test_pixels_are_those_that_were_written_or_refused(
    bits: int, photometric: str, channels: int, extra: str | None
) -> None:
    samples, found = _samples(channels, f"u{bits // 8}"), Counter[str]()
    planars = ("contig", "separate") if channels > 1 else ("contig",)
    for planar, order, (compression, predictor), tile in itertools.product(planars, "<>", CODINGS, (None, (16, 32))):
        content = _written(
            samples, photometric, extra, planarconfig=planar, byteorder=order, compression=compression,
            predictor=predictor, tile=tile, rowsperstrip=None if tile else 16,
        )  # fmt: skip
        kind = (planar, order, compression, predictor, tile)
        if _is_read(bits, photometric, extra, planar, order, compression):
            np.testing.assert_array_equal(picture.load(content), _wanted(samples, photometric), err_msg=str(kind))
            found["read"] += 1
        else:
            with pytest.raises(InputError, match="is not supported") as caught:
                picture.load(content)
            assert caught.value.code == "unsupported", kind
            assert "magick" in caught.value.hint
            found["refused"] += 1
    assert sum(found.values()) == len(planars) * 2 * len(CODINGS) * 2


@pytest.mark.parametrize("dtype", ["u4", "f4", "f8", "i1", "i2", "i4"])
@pytest.mark.parametrize(("photometric", "channels", "extra"), LAYOUTS)
def test_other_sample_formats_are_unsupported_and_not_damaged(
    dtype: str, photometric: str, channels: int, extra: str | None
) -> None:
    for planar, order in itertools.product(("contig", "separate"), "<>"):
        content = _written(_samples(channels, dtype), photometric, extra, planarconfig=planar, byteorder=order)
        with pytest.raises(InputError) as caught:
            picture.load(content)
        assert caught.value.code == "unsupported"
        assert {"u": "32-bit", "f": "floating-point", "i": "signed"}[dtype[0]] in caught.value.problem


@pytest.mark.parametrize("order", "<>")
def test_bigtiff_is_read_or_called_unsupported(order: str) -> None:
    samples = _samples(1, "u1")
    content = _written(samples, "minisblack", None, planarconfig="contig", byteorder=order, bigtiff=True)
    if order == "<":
        np.testing.assert_array_equal(picture.load(content), _wanted(samples, "minisblack"))
        return
    with pytest.raises(InputError, match="big-endian BigTIFF is not supported") as caught:
        picture.load(content)
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize("largest", [255, 65535])
@pytest.mark.parametrize("bits", [4, 8])
def test_colour_maps_of_8_and_of_16_bits(largest: int, bits: int) -> None:
    """libtiff's rule: a map without a value above 255 has 8 bits."""
    levels = np.linspace(0, largest, 1 << bits).astype(np.uint16)
    colours = np.stack([levels, levels[::-1], levels])
    indices = (_samples(1, "u1")[:, :, 0] >> (8 - bits)).astype(np.uint8)
    if bits == 8:
        file = io.BytesIO()
        tifffile.imwrite(file, indices, photometric="palette", colormap=colours)
        content = file.getvalue()
    else:
        content = _palette_of_4_bits(indices, colours)
    wanted = np.moveaxis((colours if largest == 255 else colours >> 8)[:, indices], 0, -1)
    np.testing.assert_array_equal(picture.load(content), wanted)


def _palette_of_4_bits(indices: Array, colours: Array) -> bytes:
    packed = (indices[:, ::2] << 4 | indices[:, 1::2]).astype(np.uint8).tobytes()
    maps = colours.astype("<u2").tobytes()
    tags = {256: WIDTH, 257: HEIGHT, 258: 4, 259: 1, 262: 3, 273: 8, 277: 1, 278: HEIGHT, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    entries += struct.pack("<HHII", 320, 3, colours.size, 8 + len(packed))
    return (
        b"II*\0" + struct.pack("<I", 8 + len(packed) + len(maps)) + packed + maps
        + struct.pack("<H", len(tags) + 1) + entries + bytes(4)
    )  # fmt: skip


@pytest.mark.parametrize("compression", [None, "lzw"])
def test_colours_under_associated_alpha_are_taken_as_they_are_stored(compression: str | None) -> None:
    samples = _samples(4, "u1")
    samples[..., 3] = 128
    content = _written(samples, "rgb", "assocalpha", planarconfig="contig", compression=compression)
    np.testing.assert_array_equal(picture.load(content), samples[..., :3])


def test_ycbcr_is_read_from_jpeg_and_otherwise_unsupported() -> None:
    colour = _samples(3, "u1")
    file = io.BytesIO()
    tifffile.imwrite(file, colour, photometric="ycbcr", compression="jpeg", compressionargs={"level": 95})
    decoded = tifffile.imread(io.BytesIO(file.getvalue()))
    assert np.abs(picture.load(file.getvalue()).astype(int) - decoded).max() <= 4  # rounding of two JPEG decoders
    for compression in (None, "lzw"):
        file = io.BytesIO()
        tifffile.imwrite(file, colour, photometric="ycbcr", compression=compression, subsampling=(1, 1))
        with pytest.raises(InputError, match="YCbCr TIFF is not supported") as caught:
            picture.load(file.getvalue())
        assert caught.value.code == "unsupported"


@pytest.mark.parametrize(("photometric", "words"), [("cielab", "CIELab"), ("logluv", "LogLuv"), ("cfa", "CFA")])
def test_the_message_names_an_unsupported_color_space(photometric: str, words: str) -> None:
    file = io.BytesIO()
    channels = 1 if photometric == "cfa" else 3
    pixels = _samples(channels, "u1")[:, :, 0] if channels == 1 else _samples(3, "u1")
    tifffile.imwrite(file, pixels, photometric=photometric)
    with pytest.raises(InputError, match=f"8-bit {words} TIFF") as caught:
        picture.load(file.getvalue())
    assert caught.value.code == "unsupported"


def test_a_pillow_image_that_the_caller_opened_is_held_to_the_same_rules() -> None:
    from PIL import Image

    content = _written(_samples(3, "u2"), "rgb", None, planarconfig="separate")
    with Image.open(io.BytesIO(content)) as image, pytest.raises(InputError, match="in separate planes"):
        picture.load(image)
    samples = _samples(1, "u1")
    content = _written(samples, "minisblack", None, planarconfig="contig", compression="lzw")
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(picture.load(image), _wanted(samples, "minisblack"))
