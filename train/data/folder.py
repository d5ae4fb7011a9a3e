"""List the labelled scans of a data folder, leave out what the user excludes, and read the patients."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mri_edge.authoring.labels import KNOWN_FOLDERS, KNOWN_LABELS
from mri_edge.device.cpu import available_cpus
from mri_edge.errors import DataError
from mri_edge.scans import readers
from mri_edge.storage.atomic import sha256_of


@dataclass(frozen=True)
class Labels:
    """Label names in index order, index of the positive one, and the class folders of each label."""

    names: tuple[str, ...]
    positive: int
    folders: dict[str, list[str]]


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


def find_scans(data: Path, positive: str | None = None, *, trained: Labels | None = None) -> tuple[list[Scan], Labels]:
    """List a folder of class folders, ``data/<class>/`` or ``data/<source>/<class>/``.

    The order is the reference's: by source, then by label, then by file name, ignoring case.
    If all folders are named as in ``KNOWN_FOLDERS``, they mean "no tumour" and "tumour". Otherwise the folder names
    are the labels, in alphabetical order, and ``positive`` names the positive one. With ``trained``, the labels of an
    existing model, every folder must match one of them.

    Raises
    ------
    DataError
        The folder does not exist, has fewer than two classes or a class without images; the positive label is
        unknown; or a folder matches none of the ``trained`` labels.
    """
    classes = _class_folders(data)
    labels = _as_trained(classes, trained) if trained else _label_folders(classes, positive)
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


@dataclass(frozen=True)
class Selection:
    """The scans that a training uses. ``patients`` has one entry per scan, or is None if patients are unknown."""

    scans: list[Scan]
    left_out: list[Scan]
    labels: Labels
    patients: list[str] | None

    def facts(self) -> list[object]:
        """Return everything about the data that affects the result of a training, as JSON values."""
        chosen = [[scan.file, scan.sha256, scan.label] for scan in self.scans]
        return [chosen, [scan.file for scan in self.left_out], self.patients, self.labels.positive]


def select(data: Path, positive: str | None, excluded: Iterable[str] = (), groups: Path | None = None) -> Selection:
    """List the scans of a data folder, without those that ``exclude`` removes, and their patients (``read_groups``).

    Raises
    ------
    DataError
        As for ``find_scans``, ``exclude`` and ``read_groups``; or a label has no scans left.
    """
    found, labels = find_scans(data, positive)
    scans, left_out = exclude(found, excluded)
    for index, name in enumerate(labels.names):
        if all(scan.label != index for scan in scans):
            raise DataError(f"--exclude leaves no image of {name}", "Exclude less")
    return Selection(scans, left_out, labels, read_groups(groups, scans) if groups else None)


def exclude(scans: Sequence[Scan], patterns: Iterable[str]) -> tuple[list[Scan], list[Scan]]:
    """Split scans into those to use and those to exclude.

    ``patterns`` are shell-style patterns of ``Scan.file``, or paths of text files with one pattern per line.

    Raises
    ------
    DataError
        A pattern matches no scan and is probably misspelled, or a text file cannot be read.
    """

    def matched(pattern: str) -> set[str]:
        return {scan.file for scan in scans if fnmatchcase(scan.file, pattern)}

    left_out: set[str] = set()
    for pattern in patterns:
        # In the data folder itself, the name of a scan is also the path of an existing file, so try the pattern first.
        is_list = not matched(pattern) and Path(pattern).is_file()
        for line in _lines(Path(pattern)) if is_list else [pattern]:
            if not (found := matched(line)):
                raise DataError(f"--exclude: no scan matches {line!r}", "Patterns are relative to --data: 'no/*.gif'")
            left_out |= found
    return [scan for scan in scans if scan.file not in left_out], [scan for scan in scans if scan.file in left_out]


def read_groups(path: Path, scans: Sequence[Scan]) -> list[str]:
    """Read each scan's group from a CSV file with the columns ``file`` (relative to the data folder) and ``group``.

    Raises
    ------
    DataError
        The file cannot be read, lacks a column, or lacks a scan.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            group_of = {row["file"]: row["group"] for row in csv.DictReader(file)}
    except KeyError as error:
        raise DataError(f"{path}: no column {error}", "The first line must be: file,group") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot read ({error})", "Give a CSV file with the columns file,group") from error
    missing = [scan.file for scan in scans if not group_of.get(scan.file)]
    if missing:
        raise DataError(f"{path}: no group for {len(missing)} scans, for example {missing[0]!r}", "List every scan")
    return [group_of[scan.file] for scan in scans]


def _lines(path: Path) -> list[str]:
    try:
        return list(filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read ({error})", "Give a text file with one pattern per line") from error


def _hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot read ({error.strerror})", "Make it readable, or remove it") from error


def _pictures(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and readers.recognizes(path)]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_folders(data: Path) -> dict[str, Path]:
    """Return the class folders by path relative to ``data``. A folder with subfolders and no pictures is a source."""
    if not data.is_dir():
        raise DataError(f"{data}: no such folder", "Name a folder that contains one folder per class")
    classes: dict[str, Path] = {}
    for folder in _folders(data):
        inner = _folders(folder)
        for class_folder in inner if inner and not _pictures(folder) else [folder]:
            classes[class_folder.relative_to(data).as_posix()] = class_folder
    empty = [relative for relative, folder in classes.items() if not _pictures(folder)]
    if empty:
        raise DataError(
            f"{data}: no pictures in {', '.join(empty)}",
            f"Fill or remove the folder; pictures end in {', '.join(readers.suffixes())}",
        )
    return classes


def _as_trained(classes: dict[str, Path], trained: Labels) -> Labels:
    """Match folders to a model's labels: by its training folders, by label name, then by ``KNOWN_FOLDERS``."""
    meaning = dict(KNOWN_FOLDERS) if trained.names == KNOWN_LABELS else {}
    meaning |= {name.lower(): index for index, name in enumerate(trained.names)}
    for index, name in enumerate(trained.names):
        meaning |= {folder.lower(): index for folder in trained.folders.get(name, [])}
    folders: dict[str, list[str]] = {name: [] for name in trained.names}
    for name in sorted({folder.name for folder in classes.values()}, key=str.lower):
        if name.lower() not in meaning:
            raise DataError(
                f"folder {name!r} matches no label of the model. Labels: {', '.join(trained.names)}",
                f"Give it one of these names: {', '.join(meaning)}",
            )
        folders[trained.names[meaning[name.lower()]]].append(name)
    if not classes:
        raise DataError("no class folders found", "Point --data to a folder that contains one folder per class")
    return Labels(trained.names, trained.positive, folders)


def _label_folders(classes: dict[str, Path], positive: str | None) -> Labels:
    names = sorted({folder.name for folder in classes.values()}, key=str.lower)
    if all(name.lower() in KNOWN_FOLDERS for name in names):
        labels: tuple[str, ...] = KNOWN_LABELS
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
            "Point --data to a folder that contains one folder per class",
        )
    if positive is None:
        raise DataError(f"which label is the positive one? Labels: {', '.join(labels)}", "Name it: --positive LABEL")
    if positive not in labels:
        raise DataError(f"no label {positive!r}", f"Labels: {', '.join(labels)}")
    return Labels(labels, labels.index(positive), folders)
