"""A data folder: which scans it holds, which label each has, and their pixels at the network's size."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mri_edge import images
from mri_edge.cpu import available_cpus
from mri_edge.errors import DataError, InputError
from mri_edge.files import sha256_of
from mri_edge.preprocess import Preprocessing
from numpy.typing import NDArray

# Folder names of the public brain-MRI sets, in lower case -> label index.
KNOWN_LABELS = ("no tumour", "tumour")
KNOWN_FOLDERS = {"no": 0, "notumor": 0, "yes": 1, "glioma": 1, "meningioma": 1, "pituitary": 1}


@dataclass(frozen=True)
class Labels:
    """Label names in index order, index of the positive one, and the folders behind each."""

    names: tuple[str, ...]
    positive: int
    folders: dict[str, list[str]]


@dataclass(frozen=True)
class Scan:
    """One image file: ``file`` is relative to the data folder with ``/``; ``folder`` is its class folder there."""

    path: Path
    file: str
    folder: str
    label: int
    sha256: str


def find_scans(data: Path, positive: str | None = None) -> tuple[list[Scan], Labels]:
    """List a folder of class folders, ``data/<class>/`` or ``data/<source>/<class>/``.

    The order is the reference's: by source, then by label, then by file name without regard to case.
    Folders named as in ``KNOWN_FOLDERS`` mean "no tumour" and "tumour"; with any other names
    the names are the labels, in alphabetical order, and ``positive`` says which is the positive one.

    Raises
    ------
    DataError
        No such folder, fewer than two classes, a class without images, or no known positive label.
    """
    classes = _class_folders(data)
    labels = _label_folders(classes, positive)
    index = {folder: labels.names.index(name) for name, folders in labels.folders.items() for folder in folders}
    found = []
    for relative, folder in classes.items():
        source = relative.rpartition("/")[0]
        for path in _pictures(folder):
            found.append((source, index[folder.name], folder.name.lower(), path.name.lower(), relative, path))
    found.sort()
    with ThreadPoolExecutor(available_cpus()) as pool:
        hashes = pool.map(_hash, [path for *_, path in found])
        scans = [
            Scan(path, f"{relative}/{path.name}", relative, label, digest)
            for (_, label, _, _, relative, path), digest in zip(found, hashes, strict=True)
        ]
    return scans, labels


def decode(scans: Sequence[Scan], preprocessing: Preprocessing, store: Path) -> NDArray[np.uint8]:
    """Decode and resize all scans: uint8 (N, height, width, 3) RGB, on disk at ``store`` and mapped from there.

    Raises
    ------
    DataError
        A scan cannot be read; all such are named.
    """
    shape = (len(scans), preprocessing.height, preprocessing.width, 3)
    pixels = np.lib.format.open_memmap(store, mode="w+", dtype=np.uint8, shape=shape)
    unreadable: list[str] = []

    def fill(index: int) -> None:
        try:
            pixels[index] = preprocessing.fit(images.load(scans[index].path))
        except InputError as error:
            unreadable.append(error.problem)

    with ThreadPoolExecutor(available_cpus()) as pool:
        list(pool.map(fill, range(len(scans))))
    if unreadable:
        raise DataError(f"{len(unreadable)} scans cannot be read: {'; '.join(sorted(unreadable))}")
    return pixels


def _hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot read ({error.strerror})", "Make it readable, or take it away") from error


def _pictures(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in images.SUFFIXES and path.is_file()]


def _folders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))


def _class_folders(data: Path) -> dict[str, Path]:
    """Class folders by their path relative to ``data``; a folder that holds only folders is a source."""
    if not data.is_dir():
        raise DataError(f"{data}: no such folder", "Name a folder that holds one folder a class")
    classes: dict[str, Path] = {}
    for folder in _folders(data):
        inner = _folders(folder)
        for one in inner if inner and not _pictures(folder) else [folder]:
            classes[one.relative_to(data).as_posix()] = one
    empty = [relative for relative, folder in classes.items() if not _pictures(folder)]
    if empty:
        raise DataError(
            f"{data}: no pictures in {', '.join(empty)}",
            f"Fill or remove the folder; pictures end in {', '.join(images.SUFFIXES)}",
        )
    return classes


def _label_folders(classes: dict[str, Path], positive: str | None) -> Labels:
    names = sorted({folder.name for folder in classes.values()}, key=str.lower)
    if all(name.lower() in KNOWN_FOLDERS for name in names):
        labels = KNOWN_LABELS
        folders = {
            label: [name for name in names if KNOWN_FOLDERS[name.lower()] == i] for i, label in enumerate(labels)
        }
        positive = positive or labels[1]
    else:
        labels = tuple(names)
        folders = {name: [name] for name in names}
    present = [label for label in labels if folders[label]]
    if len(present) < 2:
        raise DataError(
            f"at least two classes are needed. Received: {', '.join(names) or 'no class folder'}",
            "Name with --data a folder that holds one folder a class",
        )
    if positive is None:
        raise DataError(f"which label is the positive one? Labels: {', '.join(labels)}", "Say it: --positive LABEL")
    if positive not in labels:
        raise DataError(f"no label {positive!r}", f"Labels: {', '.join(labels)}")
    return Labels(labels, labels.index(positive), folders)
