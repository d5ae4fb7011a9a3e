"""From a file, bytes, a Pillow image or an array to pixels: uint8 (H, W, 3) RGB. The one decoder."""

from __future__ import annotations

import codecs
import errno
import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImagePalette, UnidentifiedImageError

from mri_edge.device.native import silence_libtiff, trim_memory
from mri_edge.errors import InputError
from mri_edge.scans.pipes import open_scan
from mri_edge.scans.preprocessing import Pixels
from mri_edge.storage.lfs import HINT, is_lfs_pointer

from . import _tiff
from ._picture_headers import check_before_open, check_opened, unsupported_kind
from ._picture_limits import (
    MAX_PIXELS,
    SMALL_FILE,
    BoundedFile,
    check_memory,
    check_size,
    damaged,
    too_large,
    unsupported,
)

Source: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]"

# Formats a scan comes in. Pillow knows many more, each a parser that hostile files could reach.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
_WANTED = "PNG, JPEG, BMP, TIFF, WebP, GIF or PPM"

_LONGEST_STREAM = 4 * MAX_PIXELS  # bytes

_BLACK_16 = 1 << 13  # highest value of a 16-bit picture below which an eighth of its range, or less, is used

_ORIENTATION = 0x0112  # EXIF tag; CIPA DC-008
# What sets (H, W) or (H, W, 3) pixels upright, by the tag's value. These are views: a large picture is not copied.
_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}

# Pixels of a larger picture are fetched from Pillow in strips, since it makes two copies of what it gives.
_WHOLE = 1 << 22  # pixels
_STRIP = 1 << 20  # pixels
# Of pictures that take more memory than this, one is decoded at a time, whatever the number of threads.
_ALONE = 64 << 20  # bytes
_BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}

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


class _Decoding:
    """State that all threads that decode share.

    While any of them is inside the block, Python's warnings are off: Pillow warns of damaged metadata, which are
    not used, and of sizes below our own limit. Were each thread to save and restore the filters by itself, two that
    leave in the order they came would leave them off for good.
    """

    def __init__(self) -> None:
        self.start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.start)  # the threads that were inside are not in the child

    def start(self) -> None:
        """Begin with no thread inside."""
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


_decoding = _Decoding()


def load(source: Source) -> Pixels:
    """Decode to uint8 (H, W, 3) RGB.

    EXIF rotation is applied, palettes are resolved, alpha is dropped (of associated alpha the colours are taken as
    they are stored), 16 bits become 8 by their upper byte, CMYK becomes RGB, of several frames the first is taken:
    as OpenCV's ``imread`` does where it reads such files. A grey picture is a view with one channel seen three
    times; a rotated one is a view as well.

    Of 16 bits the upper ones must be used: raw scanner values, 12 bits as they are, would become
    black. A TIFF that says it has 12 bits is read by them.

    Decoding takes at most 500 MB and some seconds: what asks for more is refused before it is decoded. Of large
    pictures one is decoded at a time.

    Parameters
    ----------
    source
        A path, the bytes of a file, a Pillow image, or an array: uint8 or uint16, (H, W),
        (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA.

    Raises
    ------
    InputError
        The message says what is wrong and what was received, ``code`` says it for programs: "missing",
        "not_a_file", "damaged", "unsupported", "too_large" (with ``value`` and ``limit``), "out_of_memory",
        "unreadable".
    """
    try:
        return _load(source)
    except MemoryError as error:
        raise no_memory(_name_of(source)) from error


def _name_of(source: Source) -> str:
    if isinstance(source, str | os.PathLike):
        return str(os.fspath(source))
    if isinstance(source, np.ndarray):
        return "array"
    return "image" if isinstance(source, Image.Image) else f"{len(source)} bytes"


def _load(source: Source) -> Pixels:
    if isinstance(source, np.ndarray):
        return _from_array(source, "array")
    if isinstance(source, Image.Image):
        with _decoding:
            return _from_image(source, "image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source), _name_of(source), len(source))
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
                content = io.BufferedReader(file).read(_LONGEST_STREAM + 1)
                if len(content) > _LONGEST_STREAM:
                    what = f"more than {_LONGEST_STREAM >> 20} MiB"
                    raise too_large(path, what, len(content), _LONGEST_STREAM)
                return _from_file(io.BytesIO(content), path, len(content))
            if status.st_size <= SMALL_FILE:
                content = file.read(status.st_size)
                return _from_file(io.BytesIO(content), path, len(content))
            return _from_file(BoundedFile(file, path, status.st_size), path, status.st_size)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file", code="missing") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder, not a picture", code="not_a_file") from error
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


def no_memory(name: str) -> InputError:
    """Say of one scan that there is no memory to prepare it. Raise it from the MemoryError, for ``may_pass``."""
    hint = "Free some memory and try again, or make the picture smaller"
    return InputError(f"{name}: cannot read (out of memory)", hint, code="out_of_memory")


def _from_file(file: BinaryIO, name: str, size: int) -> Pixels:
    if size == 0:
        raise InputError(f"{name}: the file is empty (0 bytes)", "Copy it again", code="damaged")
    head = file.read(64)
    if is_lfs_pointer(head):
        raise InputError(f"{name}: this is a Git LFS pointer, not the picture", HINT, code="unsupported")
    with _decoding:
        check_before_open(file, head, size, name)
        is_tiff = _tiff.is_tiff(head)
        if isinstance(file, BoundedFile) and (is_tiff or head[:4] == b"RIFF"):  # bounded in another way
            file.header_is_read()
        kind = _tiff.check(file, name) if is_tiff else None
        file.seek(0)
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError as error:
            if kind:  # its directory is sound
                raise unsupported(name, kind.name) from error
            file.seek(0)
            raise _unidentified(file, file.read(512), name) from error
        except Image.DecompressionBombError as error:
            what = str(error).partition(" exceeds")[0].lower()  # "image size (1600000000 pixels)"
            pixels = int("".join(filter(str.isdecimal, what)))
            raise too_large(name, what, pixels, MAX_PIXELS, f"The limit is {MAX_PIXELS:,} pixels") from error
        except InputError:
            raise
        except Exception as error:
            unknown = unsupported_kind(file, head)
            raise unsupported(name, unknown) if unknown else _unreadable(name, error) from error
        if isinstance(file, BoundedFile):
            file.header_is_read()
        with image:
            try:
                return _from_image(image, name, kind, opened=True)
            except InputError as error:
                unknown = unsupported_kind(file, head) if error.code == "damaged" else None
                raise unsupported(name, unknown) if unknown else error from error.__cause__


def _unidentified(file: BinaryIO, head: bytes, name: str) -> InputError:
    kind = unsupported_kind(file, head)
    if kind:
        return unsupported(name, kind)
    if head.startswith(_OURS):
        return damaged(name, "its header cannot be read")
    return InputError(f"{name}: not {_WANTED}. Received: {_guess(head)}", code="unsupported")


def _from_image(image: Image.Image, name: str, kind: _tiff.Tiff | None = None, *, opened: bool = False) -> Pixels:
    """Decode a picture; one that was ``opened`` here, and not by the caller, is closed."""
    check_size(name, *image.size)
    tiles = getattr(image, "tile", ())
    beside = 0
    if tiles:
        if kind is None and image.format == "TIFF":  # opened by the caller
            place = image.fp.tell()  # type: ignore[attr-defined]
            kind = _tiff.check(image.fp, name)  # type: ignore[attr-defined]
            image.fp.seek(place)  # type: ignore[attr-defined]
        beside = check_opened(image, name) + (kind.memory if kind else 0)
    # Of colours Pillow gives the upper byte alone; without such a letter 16 are the bits of a whole pixel.
    deep = any(bits in str(tile[3]) for tile in tiles for bits in (";16B", ";16L", ";16N"))
    pixels = image.width * image.height
    stored = _BYTES_OF_MODE.get(image.mode, 4)
    given = 1 if (stored < 4 and image.mode != "P") or image.mode in ("LA", "La", "I") else 3
    turned = stored if kind and kind.turned else 0  # Pillow turns a TIFF itself, by a copy
    needed = pixels * (stored + given + turned) + beside
    check_memory(name, needed)
    try:
        with _decoding.large if needed > _ALONE else nullcontext():
            values, highest = _decode(image, name, opened)
            if needed > _ALONE and opened:  # give the memory back before another large one is decoded
                image.close()
                trim_memory()
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise _unreadable(name, error) from error
    if deep and highest is None:
        highest = int(values.max()) << 8 | 0xFF  # the lower bytes are lost: the highest it can have been
    if highest is not None:
        _check_depth(highest, name)
    return _from_array(values, name)


def _decode(image: Image.Image, name: str, opened: bool) -> tuple[NDArray[np.uint8], int | None]:
    """Pixels of 8 bits, (H, W) or (H, W, 3), upright, and the highest value of what had 16 bits."""
    tiles = getattr(image, "tile", ())
    if tiles and tiles[0][0] == "ppm":
        return _decode_ppm(image)
    if image.format == "TIFF" and tiles:
        _prepare_tiff(image)
    image.load()  # first: a TIFF is turned here, and a PNG may hold its EXIF after the pixels
    width, height = image.size
    rows = max(1, _STRIP // width)
    if width * height <= _WHOLE:
        values, highest = _plain(image, name)
    else:
        parts = (image.crop((0, top, width, min(top + rows, height))) for top in range(0, height, rows))
        values, highest = _joined((_plain(part, name, image) for part in parts), height)
    if opened and image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return values, highest  # most scans: no need to make an empty Exif
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return turn(values) if turn else values, highest


def _joined(parts: Iterable[tuple[NDArray[np.uint8], int | None]], height: int) -> tuple[NDArray[np.uint8], int | None]:
    whole, top, highest = None, 0, None
    for part, most in parts:
        if whole is None:
            whole = np.empty((height, *part.shape[1:]), np.uint8)
        whole[top : top + len(part)] = part
        top += len(part)
        highest = most if highest is None else max(highest, most or 0)
    assert whole is not None  # noqa: S101 (a picture has at least one row)
    return whole, highest


def _plain(part: Image.Image, name: str, whole: Image.Image | None = None) -> tuple[NDArray[np.uint8], int | None]:
    """Pixels of 8 bits of a part of a picture, and the highest value of what had 16 bits."""
    mode = part.mode
    if mode in ("L", "RGB"):
        return np.asarray(part), None
    if mode in ("LA", "La"):
        return np.asarray(part)[:, :, 0], None
    if mode.startswith("I") or mode == "F":
        values = _deep_pixels(np.asarray(part), mode, whole or part, name)
        return (values >> 8).astype(np.uint8), int(values.max())
    return np.asarray(part.convert("L" if mode == "1" else "RGB")), None


def _deep_pixels(values: NDArray[Any], mode: str, image: Image.Image, name: str) -> NDArray[np.uint16]:
    if mode == "F" or (mode == "I" and (values.min() < 0 or values.max() > 0xFFFF)):
        raise unsupported(name, "a picture of floating-point numbers" if mode == "F" else "a picture of 32 bits")
    words, tags = values.astype(np.uint16), getattr(image, "tag_v2", {})
    if tags.get(_tiff.BITS) == (12,):
        words <<= 4
    return ~words if tags.get(_tiff.PHOTOMETRIC) == 0 else words  # of 8 bits Pillow does this itself


def _unreadable(name: str, error: Exception) -> InputError:
    if isinstance(error, MemoryError):
        return no_memory(name)
    if isinstance(error, OSError) and may_pass(error):
        return InputError(f"{name}: cannot read ({error.strerror})", "Try again")
    return damaged(name, " ".join(str(error).split()) or type(error).__name__)


def _prepare_tiff(image: Any) -> None:
    """Before a TIFF is decoded: keep libtiff quiet, and correct what Pillow takes from the file in another sense."""
    silence_libtiff()
    # Associated alpha: Pillow would divide the colours by it, and OpenCV and tifffile give them as they are.
    for place, tile in enumerate(image.tile):
        if tile[3][0].startswith("RGBa"):
            arguments = (tile[3][0].replace("RGBa", "RGBA"), *tile[3][1:])
            image.tile[place] = getattr(type(tile), "_make", tuple)((*tile[:3], arguments))
    # libtiff's rule: a colour map without a value above 255 has 8 bits.
    colours = image.tag_v2.get(_tiff.COLOUR_MAP)
    if image.mode in ("P", "PA") and colours and max(colours) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))


def _decode_ppm(image: Any) -> tuple[NDArray[np.uint8], int | None]:
    """Decode a binary PGM or PPM whose highest value is not that of its bits. Pillow takes a second a megapixel."""
    _, _, offset, (_, most) = image.tile[0]
    width, height = image.size
    shape = (height, width, 3) if image.mode == "RGB" else (height, width)
    kind = np.dtype(">u2" if most > 255 else "u1")
    image.fp.seek(offset)
    content = image.fp.read(math.prod(shape) * kind.itemsize)
    values = np.frombuffer(content, kind).reshape(shape)  # raises ValueError where the file is cut off
    top = 65535 if most > 255 else 255
    scaled = np.minimum(np.rint(np.arange(top + 1) / most * top), top).astype(np.uint16)
    table = (scaled >> 8 if most > 255 else scaled).astype(np.uint8)
    pixels = np.empty(shape, np.uint8)
    rows = max(1, _STRIP // width)
    for start in range(0, height, rows):
        pixels[start : start + rows] = table[values[start : start + rows]]
    return pixels, int(scaled[values.max()]) if most > 255 else None


def _check_depth(highest: int, name: str) -> None:
    """Refuse 16-bit values of which fewer bits are used: as bytes they would be black, and a tumour with them."""
    if 0 < highest < _BLACK_16:
        raise InputError(
            f"{name}: uses only the lower {highest.bit_length()} of its 16 bits, and would be read as black",
            "Scale it to the full range, 0 to 65535",
            code="unsupported",
            value=highest,
            limit=_BLACK_16,
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
