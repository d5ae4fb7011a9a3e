"""From a file, bytes, a Pillow image or an array to pixels: uint8 (H, W, 3) RGB. The one decoder."""

from __future__ import annotations

import codecs
import errno
import io
import os
import stat
import threading
import warnings
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .errors import InputError
from .pipes import open_scan
from .preprocess import Pixels

Source: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]"

# Formats a scan comes in. Pillow knows many more, each a parser that hostile files could reach.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
_WANTED = "PNG, JPEG, BMP, TIFF, WebP, GIF or PPM"

# Above this a picture is refused before it is decoded: 64 million pixels are 192 MB as RGB.
MAX_PIXELS = 64_000_000

_LONGEST_STREAM = 4 * MAX_PIXELS  # bytes

_LIMIT = f"The limit is {MAX_PIXELS:,} pixels: make it smaller"

_BLACK_16 = 1 << 13  # highest value of a 16-bit picture below which an eighth of its range, or less, is used

_BITS, _PHOTOMETRIC = 258, 262  # TIFF tags BitsPerSample, PhotometricInterpretation (0: white is zero); TIFF 6.0
_ORIENTATION = 0x0112  # EXIF tag; CIPA DC-008
# What sets a picture upright, by the tag's value. ImageOps.exif_transpose does the same, but writes
# the EXIF block anew, which fails on a damaged one.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.preinit()  # the readers of most formats: with this module's import, and not in the time of the first scan

# How the formats above begin, where that is plain enough to tell a damaged picture from another file.
_OURS = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"II*\0", b"MM\0*")
# What a scan is often mistaken for, by its first bytes.
_SIGNATURES = (
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip (a compressed NIfTI?)"),
    (b"\x5c\x01\x00\x00", "NIfTI"),
    (b"\x00\x00\x01\x5c", "NIfTI"),
    (b"<!DOCTYPE", "HTML"),
    (b"<html", "HTML"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"\x89HDF", "HDF5"),
)


class _Quiet:
    """Python's warnings off while any thread decodes, for all threads that do.

    Pillow warns of damaged metadata, which are not ours, and of a size below our own limit. Were each thread to
    save and restore the filters by itself, two that leave in the order they came would leave them off for good.
    """

    def __init__(self) -> None:
        self.start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.start)  # the threads that were inside are not in the child

    def start(self) -> None:
        """Nobody is inside."""
        self._lock = threading.Lock()
        self._inside = 0

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


_quiet = _Quiet()


def load(source: Source) -> Pixels:
    """Decode to uint8 (H, W, 3) RGB.

    EXIF rotation is applied, palettes are resolved, alpha is dropped, 16 bits become 8 by their
    upper byte, CMYK becomes RGB, of several frames the first is taken: as OpenCV's ``imread`` does
    where it reads such files. A grey picture is a view with one channel seen three times.

    Of 16 bits the upper ones must be used: raw scanner values, 12 bits as they are, would become
    black. A TIFF that says it has 12 bits is read by them.

    Parameters
    ----------
    source
        A path, the bytes of a file, a Pillow image, or an array: uint8 or uint16, (H, W),
        (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA.

    Raises
    ------
    InputError
        Missing, empty, damaged, too large, no picture, no such source, or one of 16 bits with its upper three unused;
        the message says which and what it was.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, "array")
    if isinstance(source, Image.Image):
        return _from_image(source, "image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source), f"{len(source)} bytes", len(source))
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            "a scan must be a path, the bytes of a file, a Pillow image or a numpy array. "
            f"Received: {type(source).__name__}"
        )
    path = os.fspath(source)  # named in messages as the caller typed it
    try:
        with open_scan(path) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):  # a pipe, which has no size and no way back
                content = file.read(_LONGEST_STREAM + 1)
                if len(content) > _LONGEST_STREAM:
                    raise InputError(f"{path}: too large, more than {_LONGEST_STREAM >> 20} MiB")
                return _from_file(io.BytesIO(content), path, len(content))
            return _from_file(file, path, status.st_size)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder, not a picture") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise InputError(f"{path}: cannot read ({getattr(error, 'strerror', None) or error})") from error


def may_pass(error: BaseException | None) -> bool:
    """Whether an error says something of the system at this moment, its memory or its disks, and nothing of a picture.

    Pillow's own have no number. A damaged picture may lead to a place that no file has, which is EINVAL; a file that
    is gone (ENOENT) is nothing to wait for.
    """
    if isinstance(error, OSError):
        return error.errno not in (None, errno.EINVAL, errno.ENOENT)
    return isinstance(error, MemoryError)


def _from_file(file: BinaryIO, name: str, size: int) -> Pixels:
    if size == 0:
        raise InputError(f"{name}: the file is empty (0 bytes)", "Copy it again")
    with _quiet:
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError as error:
            file.seek(0)
            head = file.read(512)
            if head.startswith(_OURS):
                raise InputError(f"{name}: damaged picture (its header cannot be read)", "Copy it again") from error
            raise InputError(f"{name}: not {_WANTED}. Received: {_guess(head)}") from error
        except Image.DecompressionBombError as error:
            what = str(error).partition(" exceeds")[0].lower()  # "image size (1600000000 pixels)"
            raise InputError(f"{name}: too large, {what}", _LIMIT) from error
        except Exception as error:
            raise _unreadable(name, error) from error
        with image:
            return _from_image(image, name)


def _from_image(image: Image.Image, name: str) -> Pixels:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(f"{name}: too large, {width} x {height} pixels", _LIMIT)
    # Of colours Pillow gives the upper byte alone; without such a letter 16 are the bits of a whole pixel.
    deep = any(bits in str(tile[3]) for tile in getattr(image, "tile", ()) for bits in (";16B", ";16L", ";16N"))
    try:
        values = _decode(image)
    except Exception as error:
        raise _unreadable(name, error) from error
    if deep and values.dtype == np.uint8:
        _check_depth(int(values.max()) << 8 | 0xFF, name)  # the lower bytes are lost: the highest it can have been
    return _from_array(values, name)


def _decode(image: Image.Image) -> NDArray[Any]:
    image.load()  # first: a TIFF is turned here, and a PNG may hold its EXIF after the pixels
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_pixels(image)
    if image.mode == "1":
        image = image.convert("L")
    return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))


def _unreadable(name: str, error: Exception) -> InputError:
    if may_pass(error):
        reason = error.strerror if isinstance(error, OSError) else "out of memory"
        return InputError(f"{name}: cannot read ({reason})", "Try again")
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{name}: damaged picture ({reason})", "Copy it again")


def _deep_pixels(image: Image.Image) -> NDArray[Any]:
    """Pixels of more than 8 bits: uint16, or whatever it is for ``_from_array`` to name and refuse."""
    values = np.asarray(image)
    if image.mode == "I" and values.size and values.min() >= 0 and values.max() <= 0xFFFF:
        return values.astype(np.uint16)  # Pillow's older way to hold a 16-bit PNG
    if not image.mode.startswith("I;16"):
        return values
    values, tags = values.astype(np.uint16), getattr(image, "tag_v2", {})
    if tags.get(_BITS) == (12,):
        values = values << 4
    return 65535 - values if tags.get(_PHOTOMETRIC) == 0 else values  # of 8 bits Pillow does this itself


def _check_depth(highest: int, name: str) -> None:
    """Refuse 16-bit values of which fewer bits are used: as bytes they would be black, and a tumour with them."""
    if 0 < highest < _BLACK_16:
        raise InputError(
            f"{name}: uses only the lower {highest.bit_length()} of its 16 bits, and would be read as black",
            "Scale it to the full range, 0 to 65535",
        )


def _from_array(array: NDArray[Any], name: str) -> Pixels:
    deep = array.dtype.kind == "u" and array.dtype.itemsize == 2  # whatever the order of the two
    channels = array.shape[2] if array.ndim == 3 else 1
    if (
        not (deep or array.dtype == np.uint8)
        or array.ndim not in (2, 3)
        or channels not in (1, 3, 4)
        or array.size == 0
    ):
        raise InputError(
            f"{name}: pixels must be 8 or 16 bits, (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA. "
            f"Received: {array.dtype} {array.shape}"
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise InputError(f"{name}: too large, {array.shape[1]} x {array.shape[0]} pixels")
    pixels = array[:, :, :3] if array.ndim == 3 else array[:, :, None]
    if deep:
        _check_depth(int(pixels.max()), name)
        pixels = pixels >> 8
    pixels = np.asarray(pixels, np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if channels == 1 else pixels


def _guess(head: bytes) -> str:
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"):  # nifti1.h, nifti2.h: magic
        return "NIfTI"
    for signature, name in _SIGNATURES:
        if head.lstrip()[: len(signature)].lower() == signature.lower():
            return name
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the head may end inside a character
    except UnicodeDecodeError:
        return "unknown binary data"
    plain = all(letter.isprintable() or letter in "\t\r\n\f" for letter in text)
    return f"text ({text[:20]!r}…)" if plain else "unknown binary data"
