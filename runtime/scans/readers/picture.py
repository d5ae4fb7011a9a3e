"""Read pictures with Pillow: JPEG, PNG, BMP, TIFF, WebP, GIF and PPM to uint8 (H, W, 3) RGB."""

from __future__ import annotations

import codecs
import io
import os
import re
import stat
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from mri_edge.errors import InputError
from mri_edge.scans.checks import ResultWarning
from mri_edge.scans.files import open_scan, out_of_memory
from mri_edge.scans.frame import Frame, Pixels, Source, source_name
from mri_edge.scans.options import DEFAULT, ReadOptions
from mri_edge.storage.lfs import HINT, is_lfs_pointer

from . import _tiff
from ._picture_limits import (
    MAX_PIXELS,
    SMALL_FILE,
    BoundedFile,
    check_before_open,
    damaged,
    too_large,
    unsupported,
    unsupported_kind,
)
from ._picture_pixels import decoding, pixels_of_array, pixels_of_image, unreadable

NAME = "picture"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")

# Pillow knows many more formats, each a parser that hostile files could reach.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
_FORMAT_NAMES = "PNG, JPEG, BMP, TIFF, WebP, GIF or PPM"

_SEVERAL = ResultWarning("several_pictures", "holds several pictures: only the first was read")

_MAX_STREAM = 4 * MAX_PIXELS  # bytes

# How each format begins. BMP has only two letters, so its reserved bytes and the size of its second header count too.
_BEGINNING = re.compile(
    rb"\xff\xd8\xff"
    rb"|\x89PNG\r\n\x1a\n"
    rb"|GIF8[79]a"
    rb"|II[*+]\0|MM\0[*+]"
    rb"|RIFF....WEBP"
    rb"|BM....\0\0\0\0....[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"
    rb"|P[1-6]\s+[\d#]",
    re.DOTALL,
)
# A file that begins like this but cannot be opened is a damaged picture, not another kind of file.
_SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"II*\0", b"MM\0*")
# Files that are often mistaken for scans, by their first bytes.
_OTHER_FORMATS = (
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


def recognizes(head: bytes, path: str) -> bool:
    """Whether a file begins like a picture. A DICOM file may begin like a TIFF."""
    return _BEGINNING.match(head) is not None and not _is_dicom(head)


def read(source: Source, options: ReadOptions = DEFAULT) -> tuple[Frame]:
    """Read the first picture, with a warning if the file holds more. No option applies. Errors as for ``load``."""
    pixels, several = _load(source)
    return (Frame(pixels, source_name(source), warnings=(_SEVERAL,) if several else ()),)


def load(source: Source) -> Pixels:
    """Decode to uint8 (H, W, 3) RGB.

    EXIF rotation is applied. Palettes are resolved and CMYK becomes RGB. Alpha is dropped; with associated alpha the
    colors are taken as they are stored. Of 16 bits the upper byte is kept. Only the first picture of a file is read.
    OpenCV's ``imread`` does the same where it reads such files. A gray picture is a view that shows one channel three
    times; a rotated picture is a view as well.

    A picture of 16 bits must use the upper ones: raw 12-bit values of a scanner would become black. A TIFF that
    declares 12 bits is scaled.

    Decoding takes at most 500 MB and some seconds. A picture that needs more is refused before it is decoded. Large
    pictures are decoded one at a time.

    Parameters
    ----------
    source
        A path, the bytes of a file, a Pillow image, of which the current frame is read, or an array: uint8 or uint16,
        (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA.

    Raises
    ------
    InputError
        ``code`` is "missing", "not_a_file", "damaged", "unsupported", "too_large" (with ``value`` and ``limit``),
        "out_of_memory" or "unreadable".
    """
    return _load(source)[0]


def _display_name(source: Source) -> str:
    if isinstance(source, str | os.PathLike):
        return str(os.fspath(source))
    if isinstance(source, np.ndarray):
        return "array"
    return "image" if isinstance(source, Image.Image) else f"{len(source)} bytes"


def _load(source: Source) -> tuple[Pixels, bool]:
    """Return the pixels, and whether the file holds more pictures. Errors as for ``load``."""
    try:
        return _decode(source)
    except MemoryError as error:
        raise out_of_memory(_display_name(source)) from error


def _decode(source: Source) -> tuple[Pixels, bool]:
    if isinstance(source, np.ndarray):
        return pixels_of_array(source, "array"), False
    if isinstance(source, Image.Image):
        with decoding:
            return pixels_of_image(source, "image"), False
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source), _display_name(source), len(source))
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            "a scan must be a path, the bytes of a file, a Pillow image, a numpy array or a pydicom.Dataset. "
            f"Received: {type(source).__name__}"
        )
    path = os.fspath(source)  # messages contain the path as the caller typed it
    try:
        with open_scan(path) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):  # a pipe: its size is unknown, and Pillow must be able to seek
                content = io.BufferedReader(file).read(_MAX_STREAM + 1)
                if len(content) > _MAX_STREAM:
                    raise too_large(path, f"more than {_MAX_STREAM >> 20} MiB", len(content), _MAX_STREAM)
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


def _from_file(file: BinaryIO, name: str, size: int) -> tuple[Pixels, bool]:
    if size == 0:
        raise InputError(f"{name}: the file is empty (0 bytes)", "Copy it again", code="damaged")
    head = file.read(64)
    if is_lfs_pointer(head):
        raise InputError(f"{name}: this is a Git LFS pointer, not the picture", HINT, code="unsupported")
    with decoding:
        check_before_open(file, head, size, name)
        is_tiff = _tiff.is_tiff(head)
        if isinstance(file, BoundedFile) and (is_tiff or head[:4] == b"RIFF"):  # other limits apply to these
            file.allow_whole_file()
        kind = _tiff.check(file, name) if is_tiff else None
        file.seek(0)
        try:
            image = _open(file, head)
        except UnidentifiedImageError as error:
            if kind:  # its directory is valid, so it is a TIFF that Pillow cannot read
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
            kind_name = unsupported_kind(file, head)
            raise unsupported(name, kind_name) if kind_name else unreadable(name, error) from error
        if isinstance(file, BoundedFile):
            file.allow_whole_file()
        with image:
            try:
                several = _holds_several(image)  # before decoding, which may close it
                return pixels_of_image(image, name, kind, opened=True), several
            except InputError as error:
                kind_name = unsupported_kind(file, head) if error.code == "damaged" else None
                raise unsupported(name, kind_name) if kind_name else error from error.__cause__


def _open(file: BinaryIO, head: bytes) -> Image.Image:
    """Open a picture. Before it opens a file of any kind, Pillow imports five plugins, of which a JPEG needs one."""
    if not head.startswith(b"\xff\xd8\xff"):
        return Image.open(file, formats=_FORMATS)
    try:
        return JpegImageFile(file)
    except SyntaxError as error:
        raise UnidentifiedImageError from error


def _holds_several(image: Image.Image) -> bool:
    """Whether a file that was just opened holds more pictures than the first. They are not counted: that takes time."""
    if image.format == "JPEG":
        return "mp" in image.info  # the list of the pictures in a file of a camera (MPO)
    try:
        return bool(getattr(image, "is_animated", False))
    except (IndexError, struct.error):  # a GIF that is damaged after its first picture
        return False


def _unidentified(file: BinaryIO, head: bytes, name: str) -> InputError:
    kind = unsupported_kind(file, head)
    if kind:
        return unsupported(name, kind)
    if head.startswith(_SIGNATURES):
        return damaged(name, "its header cannot be read")
    guess = _guess_format(head)
    hint = ""
    if guess in ("DICOM", "NIfTI"):  # another reader would have taken it, except for its name
        from ._dicom_signature import is_directory

        if is_directory(head):
            reason = "a DICOMDIR, which lists files and has no pixels"
            return InputError(f"{name}: {reason}", "Name its folder", code="no_pixels")
        wrong = name.lower().endswith(SUFFIXES)
        hint = "Rename it: its suffix is that of a picture" if wrong else "Save it as a file, and pass its path"
    return InputError(f"{name}: not {_FORMAT_NAMES}. Received: {guess}", hint, code="unsupported")


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"  # DICOM part 10, section 7.1


def _guess_format(head: bytes) -> str:
    if _is_dicom(head):
        return "DICOM"
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"):  # nifti1.h, nifti2.h: magic
        return "NIfTI"
    for signature, name in _OTHER_FORMATS:
        if head.lstrip()[: len(signature)].lower() == signature.lower():
            return name
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the head may end inside a character
    except UnicodeDecodeError:
        return "unknown binary data"
    plain = all(letter.isprintable() or letter in "\t\r\n\f" for letter in text)
    return f"text ({text[:20]!r}…)" if plain else "unknown binary data"
