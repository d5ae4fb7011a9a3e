"""List the labelled scans of a data folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mri_edge.bundles.manifest import MANIFEST
from mri_edge.device.cpu import available_cpus
from mri_edge.errors import DataError
from mri_edge.scans import readers
from mri_edge.storage.atomic import sha256_of

from .labels import Labels, choose_labels, match_labels


@dataclass(frozen=True)
class Scan:
    """One image file. ``file`` and its class folder, ``folder``, are POSIX paths relative to the data folder."""

    path: Path
    file: str
    folder: str
    label: int
    sha256: str

    @property
    def source(self) -> str:
        """The folder above the class folder, relative to the data folder, or "" if there is none."""
        return self.folder.rpartition("/")[0]


def find_scans(
    data: Path, positive: str | None = None, *, rule: str | None = None, trained: Labels | None = None
) -> tuple[list[Scan], Labels]:
    """List a folder of class folders, ``data/<class>/`` or ``data/<source>/<class>/``.

    The order is the reference's: by source, then by label, then by file name, ignoring case. ``positive`` and ``rule``
    are as ``choose_labels`` takes them. With ``trained``, the labels of an existing model, every folder must match one
    of them (``match_labels``).

    Raises
    ------
    UsageError, DataError
        The folder does not exist, cannot be read or has a class without images, or a name is not UTF-8; or as for
        ``choose_labels`` or ``match_labels``.
    """
    classes = _class_folders(data)
    names = [folder.name for folder in classes.values()]
    labels = match_labels(names, trained, rule) if trained else choose_labels(names, positive, rule)
    index = {folder: labels.names.index(name) for name, folders in labels.folders.items() for folder in folders}
    found = []
    for relative, folder in classes.items():
        source = relative.rpartition("/")[0]
        for path in pictures_in(folder):
            found.append((source, index[folder.name], folder.name.lower(), path.name.lower(), relative, path))
            _check_name(found[-1][-1])
    found.sort()
    with ThreadPoolExecutor(available_cpus()) as pool:
        hashes = pool.map(_hash, [path for *_, path in found])
        scans = [
            Scan(path, f"{relative}/{path.name}", relative, label, digest)
            for (_, label, _, _, relative, path), digest in zip(found, hashes, strict=True)
        ]
    return scans, labels


def list_scans(data: Path, label: int) -> list[Scan]:
    """List the pictures in a folder and its subfolders, which all have one label, by path.

    Hidden folders and links to folders are left out. Raises DataError if there is no picture or no such folder, or if a
    file or folder cannot be read or has a name that is not UTF-8.
    """
    paths = sorted(_pictures_below(data))
    if not paths:
        raise DataError(f"{data}: no pictures in it", f"Pictures end in {', '.join(readers.suffixes())}")
    for path in paths:
        _check_name(path)
    with ThreadPoolExecutor(available_cpus()) as pool:
        hashes = pool.map(_hash, paths)
        return [
            Scan(path, path.relative_to(data).as_posix(), path.parent.relative_to(data).as_posix(), label, digest)
            for path, digest in zip(paths, hashes, strict=True)
        ]


def distinct_scans(scans: Sequence[Scan]) -> tuple[list[Scan], list[tuple[Scan, Scan]]]:
    """Return the first of the scans with the same content, in order, and pairs of copies with different labels.

    The first scan of such a pair is left out as well.
    """
    first_of: dict[str, Scan] = {}
    contradictory: dict[str, tuple[Scan, Scan]] = {}
    for scan in scans:
        first = first_of.setdefault(scan.sha256, scan)
        if first.label != scan.label:
            contradictory.setdefault(scan.sha256, (first, scan))
    return [scan for scan in first_of.values() if scan.sha256 not in contradictory], list(contradictory.values())


def folder_names(data: Path) -> set[str]:
    """Return the names of the folders in a data folder that may be class folders: those in it, and those in these.

    Raises DataError if one of them cannot be read.
    """
    folders = _folders(data)
    return {folder.name for parent in [data, *folders] for folder in _folders(parent)}


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder, sorted. Raises DataError if it cannot be read."""
    return _list(folder, lambda path: path.is_file() and readers.recognizes(path))


def _pictures_below(folder: Path) -> Iterator[Path]:
    yield from pictures_in(folder)
    for inner in _folders(folder):
        if not inner.is_symlink():  # it could lead back to a parent folder
            yield from _pictures_below(inner)


def _check_name(path: Path) -> None:
    """Raise DataError for a name that records, which are UTF-8, cannot contain. Linux allows any bytes in a name."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: the name is not UTF-8", "Rename the file or folder") from error


def _hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot read ({error.strerror})", "Make it readable, or remove it") from error


def _folders(folder: Path) -> list[Path]:
    return _list(folder, lambda path: path.is_dir() and not path.name.startswith("."))


def _list(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """Return what a folder contains and ``wanted`` accepts, sorted. Raises DataError if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if wanted(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{folder}: no such folder", "Name a folder of scans") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot read ({error.strerror})", "Make it readable, or remove it") from error


def _class_folders(data: Path) -> dict[str, Path]:
    """Return the class folders by path relative to ``data``. A folder with subfolders and no pictures is a source."""
    classes: dict[str, Path] = {}
    for folder in _folders(data):
        if _list(folder, lambda path: path.name == MANIFEST):
            raise DataError(f"{folder}: is a bundle, not a folder of scans", f"Move it out of {data}")
        inner, pictures = _folders(folder), pictures_in(folder)
        if pictures and (filled := [path.name for path in inner if pictures_in(path)]):
            raise DataError(
                f"{folder}: contains pictures ({pictures[0].name}) and folders of pictures ({', '.join(filled)})",
                "Move one or the other: a class has pictures, a source has one folder per class",
            )
        for class_folder in inner if inner and not pictures else [folder]:
            classes[class_folder.relative_to(data).as_posix()] = class_folder
    empty = [relative for relative, folder in classes.items() if not pictures_in(folder)]
    if empty:
        raise DataError(
            f"{data}: no pictures in {', '.join(empty)}",
            f"Fill or remove the folder; pictures end in {', '.join(readers.suffixes())}",
        )
    return classes
