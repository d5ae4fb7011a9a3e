"""Convert an opened Pillow image, or an array, to pixels: uint8 (H, W, 3) RGB."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mri_edge.device.native import silence_libtiff, trim_memory
from mri_edge.errors import InputError
from mri_edge.scans.files import is_transient, out_of_memory
from mri_edge.scans.frame import Pixels

from . import _tiff
from ._picture_limits import check_memory, check_opened, check_size, damaged, unsupported

_BLACK_16 = 1 << 13  # a 16-bit picture with a lower maximum uses at most an eighth of its range

_ORIENTATION = 0x0112  # EXIF tag; CIPA DC-008
# How to turn (H, W) or (H, W, 3) pixels upright, by the value of the tag. The results are views, not copies.
_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}

# A larger picture is fetched from Pillow in strips, because Pillow copies the pixels twice.
_WHOLE_PIXELS = 1 << 22
_STRIP_PIXELS = 1 << 20
# Pictures that take more memory than this are decoded one at a time, even with several threads.
_LARGE_BYTES = 64 << 20
_BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}


class _Decoding:
    """A context in which pictures are decoded. Any number of threads may be inside.

    Python's warnings are off while a thread is inside. Pillow warns about damaged metadata, which is not used, and
    about sizes that our own limits refuse, and each warning would add two lines to stderr. A
    ``warnings.catch_warnings`` in each thread does not work: if the thread that entered first also leaves first, the
    second one would leave the warnings off permanently. A permanent filter for Pillow's modules would also silence
    warnings in the user's own code.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)  # the threads that were inside do not exist in the child

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.large = threading.Lock()  # held while a large picture is decoded

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._saved.__exit__(None, None, None)


decoding = _Decoding()


def pixels_of_image(image: Image.Image, name: str, kind: _tiff.Tiff | None = None, *, opened: bool = False) -> Pixels:
    """Decode a Pillow image. ``opened`` means that this package opened it and not the caller, so it may be closed.

    Parameters
    ----------
    name
        Name of the scan, for messages.
    kind
        What ``_tiff.check`` found, for a TIFF.

    Raises
    ------
    InputError
        As for ``picture.load``.
    """
    check_size(name, *image.size)
    tiles = getattr(image, "tile", ())
    extra_bytes = 0
    if tiles:
        file = getattr(image, "fp", None)
        if file is None or getattr(file, "closed", False):  # by the caller, before the pixels were read
            raise InputError(f"{name}: its file is closed", "Open it again, or call load() before it is closed")
        if kind is None and image.format == "TIFF":  # opened by the caller
            position = image.fp.tell()  # type: ignore[attr-defined]
            kind = _tiff.check(image.fp, name)  # type: ignore[attr-defined]
            image.fp.seek(position)  # type: ignore[attr-defined]
        extra_bytes = check_opened(image, name) + (kind.memory if kind else 0)
    # "16B", "16L", "16N": 16 bits a channel, of which Pillow keeps the upper byte in color pictures. A plain "16"
    # means 16 bits a pixel.
    deep = any(bits in str(tile[3]) for tile in tiles for bits in (";16B", ";16L", ";16N"))
    pixels = image.width * image.height
    stored = _BYTES_OF_MODE.get(image.mode, 4)
    result = 1 if (stored < 4 and image.mode != "P") or image.mode in ("LA", "La", "I") else 3
    turned = stored if kind and kind.turned else 0  # Pillow turns a TIFF upright itself, which takes a copy
    needed = pixels * (stored + result + turned) + extra_bytes
    check_memory(name, needed)
    try:
        with decoding.large if needed > _LARGE_BYTES else nullcontext():
            values, highest = _decode(image, name, opened)
            if needed > _LARGE_BYTES and opened:  # free the memory before another thread decodes a large picture
                image.close()
                trim_memory()
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise unreadable(name, error) from error
    if deep and highest is None:
        highest = int(values.max()) << 8 | 0xFF  # the lower bytes are lost: this is the highest possible value
    if highest is not None:
        _check_depth(highest, name)
    return pixels_of_array(values, name)


def _decode(image: Image.Image, name: str, opened: bool) -> tuple[NDArray[np.uint8], int | None]:
    """Return upright 8-bit pixels, (H, W) or (H, W, 3), and the highest value if they had 16 bits, else None."""
    tiles = getattr(image, "tile", ())
    if tiles and tiles[0][0] == "ppm":
        return _decode_ppm(image)
    if image.format == "TIFF" and tiles:
        _prepare_tiff(image)
    image.load()  # before getexif: load turns a TIFF upright, and in a PNG the EXIF may follow the pixels
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    if width * height <= _WHOLE_PIXELS:
        values, highest = _to_8_bits(image, name)
    else:
        parts = (image.crop((0, top, width, min(top + rows, height))) for top in range(0, height, rows))
        values, highest = _join((_to_8_bits(part, name, image) for part in parts), height)
    if opened and image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return values, highest  # most scans; creating an empty Exif would take time
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return turn(values) if turn else values, highest


def _join(parts: Iterable[tuple[NDArray[np.uint8], int | None]], height: int) -> tuple[NDArray[np.uint8], int | None]:
    """Join the strips of a picture that is ``height`` pixels high, and their highest values."""
    whole, top, highest = None, 0, None
    for part, part_highest in parts:
        if whole is None:
            whole = np.empty((height, *part.shape[1:]), np.uint8)
        whole[top : top + len(part)] = part
        top += len(part)
        highest = part_highest if highest is None else max(highest, part_highest or 0)
    assert whole is not None  # noqa: S101 (a picture has at least one row)
    return whole, highest


def _to_8_bits(part: Image.Image, name: str, whole: Image.Image | None = None) -> tuple[NDArray[np.uint8], int | None]:
    """Return a part of a picture as 8-bit pixels, and the highest value if they had 16 bits, else None."""
    mode = part.mode
    if mode in ("L", "RGB"):
        return np.asarray(part), None
    if mode in ("LA", "La"):
        return np.asarray(part)[:, :, 0], None
    if mode.startswith("I") or mode == "F":
        values = _to_16_bits(np.asarray(part), mode, whole or part, name)
        return (values >> 8).astype(np.uint8), int(values.max())
    return np.asarray(part.convert("L" if mode == "1" else "RGB")), None


def _to_16_bits(values: NDArray[Any], mode: str, image: Image.Image, name: str) -> NDArray[np.uint16]:
    if mode == "F" or (mode == "I" and (values.min() < 0 or values.max() > 0xFFFF)):
        raise unsupported(name, "a picture of floating-point numbers" if mode == "F" else "a picture of 32 bits")
    values, tags = values.astype(np.uint16), getattr(image, "tag_v2", {})
    if tags.get(_tiff.BITS) == (12,):
        values <<= 4
    return ~values if tags.get(_tiff.PHOTOMETRIC) == 0 else values  # Pillow does this itself for 8 bits


def unreadable(name: str, error: Exception) -> InputError:
    """Convert an exception from Pillow to an InputError."""
    if isinstance(error, MemoryError):
        return out_of_memory(name)
    if isinstance(error, OSError) and is_transient(error):
        return InputError(f"{name}: cannot read ({error.strerror})", "Try again")
    return damaged(name, " ".join(str(error).split()) or type(error).__name__)


def _prepare_tiff(image: Any) -> None:
    """Silence libtiff, and correct what Pillow interprets differently from other readers, before decoding a TIFF."""
    silence_libtiff()
    # Associated alpha: Pillow would divide the colors by it; OpenCV and tifffile return them as stored.
    for index, tile in enumerate(image.tile):
        if tile[3][0].startswith("RGBa"):
            arguments = (tile[3][0].replace("RGBa", "RGBA"), *tile[3][1:])
            image.tile[index] = getattr(type(tile), "_make", tuple)((*tile[:3], arguments))
    # libtiff's rule: a color map without a value above 255 has 8 bits.
    colors = image.tag_v2.get(_tiff.COLOR_MAP)
    if image.mode in ("P", "PA") and colors and max(colors) < 256:
        from PIL import ImagePalette

        image.palette = ImagePalette.raw("RGB;L", bytes(colors))


def _decode_ppm(image: Any) -> tuple[NDArray[np.uint8], int | None]:
    """Decode a binary PGM or PPM with a maximum other than 255 or 65535, for which Pillow takes 1 s per megapixel."""
    _, _, offset, (_, maximum) = image.tile[0]
    width, height = image.size
    shape = (height, width, 3) if image.mode == "RGB" else (height, width)
    kind = np.dtype(">u2" if maximum > 255 else "u1")
    image.fp.seek(offset)
    content = image.fp.read(math.prod(shape) * kind.itemsize)
    values = np.frombuffer(content, kind).reshape(shape)  # raises ValueError if the file is cut off
    top = 65535 if maximum > 255 else 255
    scaled = np.minimum(np.rint(np.arange(top + 1) / maximum * top), top).astype(np.uint16)
    table = (scaled >> 8 if maximum > 255 else scaled).astype(np.uint8)
    pixels = np.empty(shape, np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for start in range(0, height, rows):
        pixels[start : start + rows] = table[values[start : start + rows]]
    return pixels, int(scaled[values.max()]) if maximum > 255 else None


def _check_depth(highest: int, name: str) -> None:
    """Refuse 16-bit values that use only the lower bits: the upper bytes, which are kept, would all be black."""
    if 0 < highest < _BLACK_16:
        raise InputError(
            f"{name}: uses only the lower {highest.bit_length()} of its 16 bits, and would be read as black",
            "Scale it to the full range, 0 to 65535",
            code="unsupported",
            value=highest,
            limit=_BLACK_16,
        )


def pixels_of_array(array: NDArray[Any], name: str) -> Pixels:
    """Convert an 8- or 16-bit array, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Raises InputError for others."""
    deep = array.dtype.kind == "u" and array.dtype.itemsize == 2  # in either byte order
    channels = array.shape[2] if array.ndim == 3 else 1
    if (
        not (deep or array.dtype == np.uint8)
        or array.ndim not in (2, 3)
        or channels not in (1, 3, 4)
        or array.size == 0
    ):
        raise InputError(
            f"{name}: pixels must be 8 or 16 bits, (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA. "
            f"Received: {array.dtype} {array.shape}",
            code="unsupported",
        )
    check_size(name, array.shape[1], array.shape[0])
    pixels = array[:, :, :3] if array.ndim == 3 else array[:, :, None]
    if deep:
        _check_depth(int(pixels.max()), name)
        pixels = pixels >> 8
    pixels = np.asarray(pixels, np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if channels == 1 else pixels
