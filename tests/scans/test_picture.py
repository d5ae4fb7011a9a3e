"""Pictures other than a clean 8-bit JPEG: their pixels are those of OpenCV, where OpenCV reads them."""

from __future__ import annotations

import errno
import io
import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mri_edge.errors import InputError
from mri_edge.scans.readers import picture

cv2 = pytest.importorskip("cv2", reason="OpenCV is the peer that decoding is compared with (group 'dev')")


def _smooth(seed: int, channels: int, top: int = 255) -> np.ndarray[Any, Any]:
    """A picture (40, 60, channels) that JPEG can hold: seeded noise, blurred, from 0 to ``top``."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(40, 60, channels)), (0, 0), 3)
    noise = noise.reshape(40, 60, channels)
    scaled = (noise - noise.min()) / np.ptp(noise) * top
    return scaled.astype(np.uint16 if top > 255 else np.uint8)


RGB = _smooth(1, 3)
COLOUR = Image.fromarray(RGB)
GREY = COLOUR.convert("L")
ALPHA = Image.fromarray(_smooth(2, 1)[:, :, 0])
GREY16 = _smooth(3, 1, 65535)[:, :, 0]
RGB16 = _smooth(4, 3, 65535)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _by_opencv(pixels: np.ndarray[Any, Any], suffix: str) -> bytes:
    return bytes(cv2.imencode(suffix, pixels)[1])


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


ODD: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: _encoded(COLOUR, "JPEG", quality=90),
    "jpeg-progressive": lambda: _encoded(COLOUR, "JPEG", progressive=True),
    "jpeg-grey": lambda: _encoded(GREY, "JPEG"),
    "jpeg-cmyk": lambda: _encoded(COLOUR.convert("CMYK"), "JPEG", quality=95),
    "png-palette": lambda: _encoded(COLOUR.quantize(16), "PNG"),
    "png-palette-transparent": lambda: _encoded(COLOUR.quantize(16), "PNG", transparency=3),
    "png-rgba": lambda: _encoded(Image.merge("RGBA", (*COLOUR.split(), ALPHA)), "PNG"),
    "png-la": lambda: _encoded(Image.merge("LA", (GREY, ALPHA)), "PNG"),
    "png-1-bit": lambda: _encoded(GREY.convert("1"), "PNG"),
    "png-16-bit": lambda: _by_opencv(GREY16, ".png"),
    "png-16-bit-rgb": lambda: _by_opencv(RGB16, ".png"),
    "png-16-bit-rgba": lambda: _by_opencv(np.dstack([RGB16, GREY16]), ".png"),
    "tiff": lambda: _encoded(COLOUR, "TIFF"),
    "tiff-lzw": lambda: _encoded(COLOUR, "TIFF", compression="tiff_lzw"),
    "tiff-1-bit": lambda: _encoded(GREY.convert("1"), "TIFF", compression="group4"),
    "tiff-cmyk": lambda: _encoded(COLOUR.convert("CMYK"), "TIFF"),
    "tiff-16-bit": lambda: _encoded(Image.fromarray(GREY16), "TIFF"),
    "tiff-16-bit-white-is-zero": lambda: _tiff(65535 - GREY16, 16, photometric=0),
    "tiff-16-bit-rgb": lambda: _by_opencv(RGB16, ".tiff"),
    "tiff-of-two-pages": lambda: _encoded(COLOUR, "TIFF", save_all=True, append_images=[COLOUR.rotate(180)]),
    "pgm-16-bit": lambda: _by_opencv(GREY16, ".pgm"),
    "ppm": lambda: _encoded(COLOUR, "PPM"),
    "bmp": lambda: _encoded(COLOUR, "BMP"),
    "bmp-palette": lambda: _encoded(COLOUR.quantize(16), "BMP"),
    "gif": lambda: _encoded(COLOUR, "GIF"),
    "webp": lambda: _encoded(COLOUR, "WEBP", quality=90),
    "webp-alpha": lambda: _encoded(Image.merge("RGBA", (*COLOUR.split(), ALPHA)), "WEBP", lossless=True, exact=True),
}
for _orientation in range(1, 9):
    ODD[f"jpeg-turned-{_orientation}"] = lambda o=_orientation: _encoded(COLOUR, "JPEG", exif=_exif(o))
    ODD[f"png-turned-{_orientation}"] = lambda o=_orientation: _encoded(COLOUR, "PNG", exif=_exif(o))
    ODD[f"webp-turned-{_orientation}"] = lambda o=_orientation: _encoded(COLOUR, "WEBP", exif=_exif(o), lossless=True)


@pytest.mark.parametrize("kind", ODD)
def test_odd_pictures_are_read_as_opencv_reads_them(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"scan.{kind.split('-', maxsplit=1)[0]}"
    path.write_bytes(ODD[kind]())
    pixels = picture.load(path)
    assert pixels.dtype == np.uint8
    if kind.startswith("gif"):  # OpenCV reads GIF only in builds that were given it
        peer = np.asarray(Image.open(path).convert("RGB"))
    else:
        peer = cv2.imread(str(path))[:, :, ::-1]
    assert pixels.shape == peer.shape
    # Lossless kinds come out the same. JPEG and WebP decoders may round their last step apart, as may
    # CMYK to RGB and 16 bits to 8 (OpenCV divides some kinds by 257 and shifts others): one step each.
    assert np.abs(pixels.astype(int) - peer).max() <= 2


def _tiff(values: np.ndarray[Any, Any], bits: int, photometric: int = 1) -> bytes:
    """A TIFF of one strip, grey, little-endian; ``values`` uint16 (H, W), 12 bits are packed as TIFF 6.0 has them."""
    height, width = values.shape
    strip = values.astype("<u2").tobytes()
    if bits == 12:
        strip = np.packbits(np.unpackbits(values.astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 4:]).tobytes()
    sizes = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height}
    places = {273: 8, 279: len(strip)}
    tags = b"".join(
        struct.pack("<HHII", tag, 3 if tag in sizes else 4, 1, value) for tag, value in sorted((sizes | places).items())
    )
    directory = struct.pack("<H", len(sizes | places)) + tags + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory


def test_tiff_of_12_bits_is_read_by_them() -> None:
    # OpenCV's own reader of these depends on its libtiff; the same values in 16 bits are the peer.
    np.testing.assert_array_equal(picture.load(_tiff(GREY16 >> 4, 12)), picture.load(GREY16))


GREY12, RGB12 = GREY16 >> 4, RGB16 >> 4
RAW: dict[str, Callable[[], Any]] = {
    "grey array": lambda: GREY12,
    "colour array with opaque alpha": lambda: np.dstack([RGB12, np.full_like(GREY16, 65535)]),
    "png": lambda: _by_opencv(GREY12, ".png"),
    "png, grey with alpha": lambda: _png_of_16_bits_with_alpha(GREY12),
    "png, colour": lambda: _by_opencv(RGB12, ".png"),
    "png, colour with alpha": lambda: _by_opencv(np.dstack([RGB12, np.full_like(GREY16, 65535)]), ".png"),
    "tiff": lambda: _tiff(GREY12, 16),
    "tiff, colour": lambda: _by_opencv(RGB12, ".tiff"),
    "pgm": lambda: b"P5 60 40 65535\n" + GREY12.astype(">u2").tobytes(),
}


def _png_of_16_bits_with_alpha(grey: np.ndarray[Any, Any]) -> bytes:
    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 16, 4, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in np.dstack([grey, np.full_like(grey, 65535)]).astype(">u2"))
    content = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_8_bits_in_16_bit_color_are_refused_and_not_read_as_black(kind: str) -> None:
    with pytest.raises(InputError, match=r"uses only the lower 8 of its 16 bits"):
        picture.load(_by_opencv(RGB16 >> 8, kind))


@pytest.mark.parametrize("kind", RAW)
def test_12_bits_in_16_are_refused_and_not_read_as_black(kind: str) -> None:
    with pytest.raises(InputError, match=r"uses only the lower 12 of its 16 bits.* Scale it to the full range"):
        picture.load(RAW[kind]())


def test_16_bits_that_are_blank_or_use_the_upper_ones_are_read() -> None:
    black = np.zeros((40, 60), np.uint16)
    assert not picture.load(black).any()  # blank, so the checks warn about it
    dark = black.copy()
    dark[0, 0] = 1 << 13
    assert picture.load(dark).max() == 1 << 5
    assert picture.load(RGB >> 4).max() == 15  # 8 bits are never in doubt
    # 16 are here the bits of an entire pixel: 5 red, 6 green, 5 blue.
    header = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 0, 32, 0, 0, 0, 0)
    bitmap = b"BM" + struct.pack("<IHHI", 86, 0, 0, 54) + header + struct.pack("<H", 0b0_00001_00001_00001) * 16
    assert 0 < picture.load(bitmap).max() < 32


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_tiff_is_set_upright(orientation: int) -> None:
    # OpenCV refuses rotated TIFFs, so they are compared with a PNG in the same rotation.
    turned = picture.load(_encoded(COLOUR, "TIFF", tiffinfo={0x0112: orientation}))
    np.testing.assert_array_equal(turned, picture.load(_encoded(COLOUR, "PNG", exif=_exif(orientation))))


@pytest.mark.parametrize("tag", [0, 9, 99])
def test_an_undefined_orientation_is_ignored(tag: int) -> None:
    np.testing.assert_array_equal(picture.load(_encoded(COLOUR, "PNG", exif=_exif(tag))), RGB)


def test_damaged_exif_does_not_spoil_the_picture() -> None:
    jpeg = _encoded(COLOUR, "JPEG")
    block = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    marked = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # and nothing is printed on stderr
        pixels = picture.load(marked)
    assert sorted(pixels.shape) == [3, 40, 60]


def test_an_endless_stream_is_refused() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("this system has no /dev/zero")
    with pytest.raises(InputError, match="/dev/zero: too large, more than 244 MiB"):
        picture.load("/dev/zero")


def test_threads_that_decode_leave_the_warning_filters_as_they_were() -> None:
    jpeg, before = _encoded(COLOUR, "JPEG"), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(picture.load, [jpeg] * 400))
    assert warnings.filters == before


@pytest.mark.data
def test_real_scans_are_read_as_opencv_reads_them(scans: Path) -> None:
    files = sorted((scans / "navoneel").glob("*/*"))
    assert len(files) == 253
    worst = 0
    for path in files:
        peer = cv2.imread(str(path))[:, :, ::-1]
        pixels = picture.load(path)
        assert pixels.shape == peer.shape, path.name
        worst = max(worst, int(np.abs(pixels.astype(np.int16) - peer).max()))
    # Pillow and OpenCV both bundle libjpeg-turbo; their builds may differ in the chroma upsampling
    # by SIMD or C, which round apart by one step.
    assert worst <= 1


# --- sources other than files


def test_path_bytes_image_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    COLOUR.save(path)
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), COLOUR, RGB):
        np.testing.assert_array_equal(picture.load(source), RGB)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "GIF", "BMP", "PPM"])
def test_an_image_whose_file_was_closed_is_an_input_error(kind: str) -> None:
    for close in (lambda image, file: image.close(), lambda image, file: file.close()):
        file = io.BytesIO(_encoded(COLOUR, kind))
        image = Image.open(file)
        close(image, file)
        with pytest.raises(InputError, match="image: its file is closed"):
            picture.load(image)


def test_gray_is_a_view_of_one_channel_as_three() -> None:
    grey = np.asarray(GREY)
    for source in (grey, grey[:, :, None], GREY, _encoded(GREY, "PNG")):
        pixels = picture.load(source)
        assert pixels.shape == (40, 60, 3)
        assert pixels.strides[2] == 0
        np.testing.assert_array_equal(pixels[:, :, 2], grey)


def test_array_of_16_bits_keeps_its_upper_byte() -> None:
    for array in (RGB16, RGB16.astype(">u2"), RGB16.astype("<u2")):
        np.testing.assert_array_equal(picture.load(array), (RGB16 >> 8).astype(np.uint8))


def test_alpha_of_an_array_is_dropped() -> None:
    np.testing.assert_array_equal(picture.load(np.dstack([RGB, np.zeros((40, 60), np.uint8)])), RGB)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.array(7, np.uint8),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_an_invalid_array_is_named(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InputError, match=r"pixels must be 8 or 16 bits") as caught:
        picture.load(array)
    assert f"{array.dtype} {array.shape}" in str(caught.value)


# --- files that are no picture


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png_of_size(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds a thousand bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(1000))) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


JPEG = _encoded(COLOUR, "JPEG")
PNG = _encoded(COLOUR, "PNG")
WRONG = {
    "empty": (b"", "the file is empty (0 bytes)"),
    "text": (b"Patient: none\n", "Received: text ('Patient: none\\n'…)"),
    "text that is cut inside a letter": ("é".encode() * 256 + b"a", "Received: text ("),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3", "Received: PDF"),
    "html": (b"\n<!doctype html><title>404</title>", "Received: HTML"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "Received: SVG"),
    "zip": (b"PK\x03\x04\x14\0\0\0", "Received: ZIP"),
    "dicom": (bytes(128) + b"DICM\x02\0\0\0UL\x04\0", "Received: DICOM"),
    "nifti": (struct.pack("<i", 348) + bytes(340) + b"n+1\0", "Received: NIfTI"),
    "nifti, big-endian": (struct.pack(">i", 348) + bytes(340) + b"n+1\0", "Received: NIfTI"),
    "nifti-2": (struct.pack("<i", 540) + b"n+2\0\r\n\x1a\n" + bytes(528), "Received: NIfTI"),
    "nifti, compressed": (b"\x1f\x8b\x08\0\0\0\0\0", "Received: gzip (a compressed NIfTI?)"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "Received: HDF5"),
    "binary": (bytes(range(256)), "Received: unknown binary data"),
    "binary without high bytes": (b"\x01\x02\n\x00\x03", "Received: unknown binary data"),
    "jpeg, half": (JPEG[: len(JPEG) // 2], "damaged picture"),
    "jpeg, header alone": (JPEG[:40], "damaged picture"),
    "jpeg, three bytes": (JPEG[:3], "damaged picture"),
    "png, half": (PNG[: len(PNG) // 2], "damaged picture"),
    "png, header alone": (PNG[:40], "damaged picture"),
    "png, one byte changed": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "damaged picture"),
    "png without pixels": (_png_of_size(0, 0), "damaged picture"),
    "png bomb": (_png_of_size(40_000, 40_000), "too large, image size (1600000000 pixels)"),
    "png bomb below Pillow's limit": (_png_of_size(12_000, 12_000), "too large, 12000 x 12000 pixels"),
    "float tiff": (
        _encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
        "32-bit floating-point grey TIFF is not supported",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_file_is_named_in_one_line(kind: str, tmp_path: Path) -> None:
    content, words = WRONG[kind]
    path = tmp_path / "scan.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        picture.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message


def test_bomb_is_refused_before_memory_is_taken() -> None:
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(InputError):
        picture.load(_png_of_size(8_001, 8_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # bytes; the pixels would be 64 million


def test_a_missing_file_and_a_folder_get_different_messages(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        picture.load(tmp_path / "none.jpg")
    with pytest.raises(InputError, match="is a folder, not a picture"):
        picture.load(tmp_path)


def test_path_with_a_null_character_is_an_input_error() -> None:
    with pytest.raises(InputError):
        picture.load("scan\0.jpg")


def test_formats_that_scans_do_not_use_reach_no_parser(tmp_path: Path) -> None:
    path = tmp_path / "scan.jpg"
    COLOUR.save(path, "TGA")  # Pillow reads it
    with pytest.raises(InputError, match="not PNG, JPEG"):
        picture.load(path)


def test_damaged_files_raise_nothing_but_input_errors() -> None:
    # Pillow's parsers answer damage with struct.error, TypeError, KeyError and others.
    rng = random.Random(5)
    intact = [make() for make in ODD.values()]
    for _ in range(3000):
        damaged = bytearray(rng.choice(intact))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(min(len(damaged), rng.choice((40, 200, 10**9))))
            if rng.random() < 0.2:
                del damaged[place + 1 :]
            else:
                damaged[place] = rng.choice((0, 255, rng.randrange(256)))
        try:
            pixels = picture.load(bytes(damaged))
        except InputError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)


@pytest.mark.parametrize("error", [struct.error("unpack requires 2 bytes"), TypeError("'float' object"), KeyError(7)])
def test_any_error_of_a_parser_becomes_an_input_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(InputError, match="damaged picture"):
        picture.load(PNG)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MemoryError(), "out of memory"), (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle")],
)
@pytest.mark.parametrize("step", ["open", "load"])
def test_errors_of_the_system_are_not_reported_as_damaged_pictures(
    error: Exception, reason: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    path = tmp_path / "scan.png"
    path.write_bytes(PNG)
    monkeypatch.setattr(Image if step == "open" else PngImagePlugin.PngImageFile, step, fail)
    with pytest.raises(InputError) as caught:
        picture.load(path)
    assert caught.value.problem == f"{path}: cannot read ({reason})"


# --- sound pictures of kinds that are not read, and what each refusal is called


def _patched(content: bytes, found: bytes, put: bytes) -> bytes:
    assert found in content
    return content.replace(found, put, 1)


def _bmp(bits: int, compression: int, body: bytes, palette: bytes = b"", colours: int = 0) -> bytes:
    """A BMP of 8 x 8 pixels with a header of 40 bytes."""
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, compression, len(body), 0, 0, colours, 0)
    return (
        b"BM" + struct.pack("<IHHI", 54 + len(palette) + len(body), 0, 0, 54 + len(palette)) + header + palette + body
    )


_FRAME = JPEG[JPEG.index(b"\xff\xc0") :][:5]
UNSUPPORTED = {
    "jpeg of 12 bits": (_patched(JPEG, _FRAME, _FRAME[:4] + b"\x0c"), "12-bit JPEG"),
    "jpeg, arithmetic-coded": (_patched(JPEG, b"\xff\xc0", b"\xff\xc9"), "arithmetic-coded JPEG"),
    "jpeg, lossless": (_patched(JPEG, b"\xff\xc0", b"\xff\xc3"), "lossless"),
    "bmp with masks of its own": (
        _bmp(32, 3, struct.pack("<III", 0x3FF00000, 0xFFC00, 0x3FF) + bytes(256)),
        "32-bit BMP",
    ),
    "bmp with a jpeg inside": (_bmp(0, 4, JPEG), "0-bit BMP with compression 4"),
    "bmp of 8 bits with a palette of black and white": (
        _bmp(8, 0, bytes([0, 1] * 32), bytes(4) + b"\xff\xff\xff\0", 2),
        "8-bit BMP with a gray palette of another depth",
    ),
    "float pixmap": (b"Pf\n2 2\n-1.0\n" + bytes(16), "PPM with pixels of the kind F;32F"),
    "16-bit colour png that is black": (_by_opencv(RGB16 * 0, ".png"), "uses only the lower 8 of its 16 bits"),
    "16-bit colour ppm of low values": (b"P6 2 2 65535\n" + b"\0\x11" * 12, "uses only the lower 5 of its 16 bits"),
    "dicom": (WRONG["dicom"][0], "Received: DICOM"),
    "git lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 17\n",
        "this is a Git LFS pointer, not the picture. Run 'git lfs pull'",
    ),
}


@pytest.mark.parametrize(
    ("name", "head", "code", "words"),
    [
        ("a.jpg", WRONG["dicom"][0], "unsupported", "Rename it: its suffix is that of a picture"),
        ("a.PNG", WRONG["nifti"][0], "unsupported", "Rename it: its suffix is that of a picture"),
        ("stream", WRONG["dicom"][0], "unsupported", "Save it as a file"),
        ("DICOMDIR", bytes(128) + b"DICM\x02\0\x02\0UI\x14\x001.2.840.10008.1.3.10", "no_pixels", "Name its folder"),
    ],
)
def test_a_scan_of_another_format_gets_a_hint(name: str, head: bytes, code: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(head)
    with pytest.raises(InputError, match=words) as caught:
        picture.load(tmp_path / name)
    assert caught.value.code == code


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_an_unsupported_kind_is_reported_as_unsupported(kind: str) -> None:
    content, words = UNSUPPORTED[kind]
    with pytest.raises(InputError) as caught:
        picture.load(content)
    assert words in str(caught.value)
    assert caught.value.code == "unsupported"


def test_refusals_have_a_code_for_programs(tmp_path: Path) -> None:
    codes = {}
    for name, source in {
        "missing": tmp_path / "none.png",
        "folder": tmp_path,
        "empty": b"",
        "cut off": PNG[: len(PNG) // 2],
        "large": _png_of_size(8_001, 8_000),
        "large array": np.broadcast_to(np.uint8(0), (8_001, 8_000)),
        "float array": np.zeros((4, 4)),
    }.items():
        with pytest.raises(InputError) as caught:
            picture.load(source)
        codes[name] = caught.value.code
    assert codes == {
        "missing": "missing",
        "folder": "not_a_file",
        "empty": "damaged",
        "cut off": "damaged",
        "large": "too_large",
        "large array": "too_large",
        "float array": "unsupported",
    }


def test_a_marker_in_a_color_profile_does_not_make_a_jpeg_unsupported() -> None:
    profile = b"\xff\xc9\xff\xca\xff\xda" * 40
    np.testing.assert_array_equal(picture.load(_encoded(COLOUR, "JPEG", icc_profile=profile)), picture.load(JPEG))


@pytest.mark.parametrize("most", [100, 4095, 65534])
@pytest.mark.parametrize("channels", [1, 3])
def test_portable_pixmaps_are_scaled_by_their_own_highest_value(most: int, channels: int) -> None:
    values = np.random.default_rng(7).integers(0, most + 1, (50, 70, channels))
    values[0, 0] = most
    head = f"P{5 if channels == 1 else 6} 70 50 {most}\n".encode()
    body = values.astype(">u2" if most > 255 else "u1").tobytes()
    wanted = np.rint(values / most * 65535).astype(int) >> 8 if most > 255 else np.rint(values / most * 255)
    np.testing.assert_array_equal(picture.load(head + body), np.broadcast_to(wanted, (50, 70, 3)))
    with pytest.raises(InputError) as caught:
        picture.load(head + body[:-1])
    assert caught.value.code == "damaged"


def test_libtiff_writes_nothing_to_stderr_from_any_thread(capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(_encoded(COLOUR, "TIFF", compression="tiff_lzw"))
    content[300:5000] = bytes(len(content[300:5000]))

    def code(_: int) -> str:
        try:
            picture.load(bytes(content))
        except InputError as error:
            return error.code
        return "read"

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(code, range(40))) == {"damaged"}
    assert capfd.readouterr().err == ""


def test_libtiff_would_write_to_stderr() -> None:
    """Without this the test above could not fail."""
    code = "import io, sys\nfrom PIL import Image\nImage.open(io.BytesIO(sys.stdin.buffer.read())).load()"
    content = bytearray(_encoded(COLOUR, "TIFF", compression="tiff_lzw"))
    content[300:5000] = bytes(len(content[300:5000]))
    done = subprocess.run([sys.executable, "-c", code], input=bytes(content), capture_output=True, check=False)
    assert b"LZW" in done.stderr


def test_first_picture_of_several_in_one_jpeg_is_read(tmp_path: Path) -> None:
    """Cameras write such files (MPO). Pillow takes them for another format."""
    first, second = (Image.new("RGB", (120, 110), color) for color in ("red", "blue"))
    path = tmp_path / "two.jpg"
    first.save(path, "MPO", save_all=True, append_images=[second])
    with Image.open(path) as opened:
        assert opened.format == "MPO"
        assert np.array_equal(picture.load(path), np.asarray(opened))


def _several(kind: str, count: int) -> bytes:
    pages = [Image.new("L", (120, 110), color=50 * number) for number in range(count)]
    return _encoded(pages[0], kind, save_all=True, append_images=pages[1:])


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG", "MPO"])
def test_a_file_of_several_pictures_gets_a_warning(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "scan"
    for count in (1, 2, 3):
        path.write_bytes(_several(kind, count))
        for source in (path, path.read_bytes()):
            (frame,) = picture.read(source)
            assert [warning.code for warning in frame.warnings] == ["several_pictures"] * (count > 1)
            assert frame.pixels.max() == 0  # the first one


def test_a_gif_that_is_damaged_after_its_first_picture_is_read() -> None:
    first = _several("GIF", 1)
    second = _several("GIF", 2).removeprefix(first[:-1])
    for length in range(len(second)):
        (frame,) = picture.read(first[:-1] + second[:length])
        assert np.array_equal(frame.pixels, picture.load(first))
