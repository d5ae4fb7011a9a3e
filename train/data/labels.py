"""Decide which label each class folder has, and which label is the positive one."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mri_edge.authoring.labels import KNOWN_FOLDERS, KNOWN_LABELS, describe_labels
from mri_edge.errors import DataError, UsageError

FOLDERS = "folders"  # the value of --labels that keeps every folder as a label


@dataclass(frozen=True)
class Labels:
    """Label names in index order, index of the positive one, and the class folders of each label.

    ``positive`` is None only with more than two labels: then the most probable label is the answer, and there is no
    threshold.
    """

    names: tuple[str, ...]
    positive: int | None
    folders: dict[str, list[str]]

    @property
    def positive_name(self) -> str | None:
        """Name of the positive label, or None if there is none."""
        return None if self.positive is None else self.names[self.positive]

    def describe(self) -> str:
        """Return the mapping as one line: ``"labels: no tumour = no; tumour = glioma, yes (positive: tumour)"``."""
        return describe_labels({name: self.folders.get(name, []) for name in self.names}, self.positive_name)


def choose_labels(folders: Iterable[str], positive: str | None = None, rule: str | None = None) -> Labels:
    """Choose the labels of a training from the names of its class folders.

    Parameters
    ----------
    folders
        Names of the class folders. Names that differ only in case have the same label.
    positive
        The positive label. None chooses it if two labels have known names (``KNOWN_FOLDERS``), and chooses none if
        there are more than two labels.
    rule
        ``"folders"`` keeps every folder as a label. ``"glioma=tumor,notumor=healthy"`` maps each folder to a label.
        None maps folders with known names to "no tumour" and "tumour", and otherwise keeps every folder. Labels are
        in alphabetical order.

    Raises
    ------
    UsageError
        ``rule`` cannot be read.
    DataError
        There are fewer than two labels; a folder has no label, or a label no folder; the positive label is unknown, or
        is missing.
    """
    names = sorted(set(folders), key=lambda name: (_key(name), name))
    if rule not in (None, FOLDERS):
        of_label = _mapped_folders(names, str(rule))
    elif rule is None and all(_key(name) in KNOWN_FOLDERS for name in names):
        of_label = {
            label: [name for name in names if KNOWN_FOLDERS[_key(name)] == index]
            for index, label in enumerate(KNOWN_LABELS)
        }
        positive = positive or KNOWN_LABELS[1]
    else:
        of_label = {}
        for name in names:
            first = next((label for label in of_label if _key(label) == _key(name)), name)
            of_label.setdefault(first, []).append(name)
    if sum(bool(of_this) for of_this in of_label.values()) < 2:
        raise DataError(
            f"at least two classes are needed. Received: {', '.join(names) or 'no class folder'}",
            "Point --data to a folder that contains one folder per class",
        )
    labels = tuple(of_label)
    return Labels(labels, _positive_index(of_label, positive), of_label)


def match_labels(folders: Iterable[str], trained: Labels, rule: str | None = None) -> Labels:
    """Match class folders to the labels of a trained model.

    Parameters
    ----------
    folders
        Names of the class folders. Some labels may have none.
    trained
        Labels of the model. Without ``rule`` a folder matches by the names of the model's training folders, by label
        names, and, if the model's labels are "no tumour" and "tumour", by ``KNOWN_FOLDERS``.
    rule
        As for ``choose_labels``; its labels must be those of the model.

    Raises
    ------
    UsageError
        ``rule`` cannot be read.
    DataError
        There are no folders, or a folder has no label of the model.
    """
    names = sorted(set(folders), key=_key)
    if not names:
        raise DataError("no class folders found", "Point --data to a folder that contains one folder per class")
    mapped = {} if rule in (None, FOLDERS) else _parse_mapping(str(rule))
    label_of = {name: _key(mapped.get(_key(name), name)) for name in names}
    meaning = {_key(name): name for name in trained.names}
    if rule is None:
        known = {folder: KNOWN_LABELS[index] for folder, index in KNOWN_FOLDERS.items()}
        meaning = (known if trained.names == KNOWN_LABELS else {}) | meaning
        meaning |= {_key(folder): label for label, of_label in trained.folders.items() for folder in of_label}
    if unknown := [name for name in names if label_of[name] not in meaning]:
        _refuse_unequal_labels(label_of, unknown, meaning, trained)
    of_label: dict[str, list[str]] = {name: [] for name in trained.names}
    for name in names:
        of_label[meaning[label_of[name]]].append(name)
    return Labels(trained.names, trained.positive, of_label)


def _refuse_unequal_labels(
    label_of: Mapping[str, str], unknown: list[str], meaning: Mapping[str, str], trained: Labels
) -> None:
    """Raise DataError with the labels of data and model, and with a command that maps every folder."""
    found = dict.fromkeys(name if label == _key(name) else label for name, label in label_of.items())
    pairs = {name: meaning.get(label, "LABEL") for name, label in label_of.items()}
    folder = f"folder {unknown[0]!r} matches" if len(unknown) == 1 else f"folders {', '.join(unknown)} match"
    raise DataError(
        f"{folder} no label of the model. Labels of the data: {', '.join(found)}; of the model: "
        f"{', '.join(trained.names)}",
        f"Map every folder to a label of the model: {_labels_option(pairs)}",
    )


def _key(folder: str) -> str:
    """Return the form in which names are compared: case, outer spaces and the two ways to write an accent are equal.

    Some file systems decompose accents (``u`` and a mark), and keyboards do not, so that equal names look unequal.
    """
    return unicodedata.normalize("NFC", folder).strip().lower()


def _labels_option(label_of: Mapping[str, str]) -> str:
    """Return the option with a mapping as a shell takes it, or what to do if no option can express the mapping."""
    if unnamable := [name for name in (*label_of, *label_of.values()) if "," in name]:
        return f"rename {unnamable[0]!r}, because --labels separates pairs by commas"
    return f"--labels {shlex.quote(','.join(f'{folder}={label}' for folder, label in label_of.items()))}"


def _mapped_folders(names: list[str], rule: str) -> dict[str, list[str]]:
    """Return the folders of each label of a mapping, in alphabetical order of the labels."""
    label_of = _parse_mapping(rule)
    if missing := [name for name in names if _key(name) not in label_of]:
        raise DataError(
            f"--labels gives no label to the folders {', '.join(missing)}",
            f"Add them: {_labels_option({**label_of, **dict.fromkeys(missing, 'LABEL')})}",
        )
    of_label = {
        label: [name for name in names if label_of[_key(name)] == label]
        for label in sorted(set(label_of.values()), key=lambda label: (label.lower(), label))
    }
    for label, of_this in of_label.items():
        if not of_this:
            asked = [folder for folder, its_label in label_of.items() if its_label == label]
            raise DataError(
                f"label {label!r} has no images: there is no folder {' or '.join(asked)}",
                f"Folders: {', '.join(names)}",
            )
    return of_label


def _parse_mapping(rule: str) -> dict[str, str]:
    """Read ``"FOLDER=LABEL,..."``: the label of each folder, by the ``_key`` of its name.

    Labels with the same ``_key`` are one, in the spelling that comes first.
    """
    label_of: dict[str, str] = {}
    spelling: dict[str, str] = {}
    for part in filter(None, map(str.strip, rule.split(","))):
        folder, _, label = (piece.strip() for piece in part.rpartition("="))
        if not folder or not label:
            raise UsageError(
                f"--labels takes {FOLDERS!r} or pairs FOLDER=LABEL. Received: {part!r}",
                "For example: --labels glioma=tumor,notumor=healthy",
            )
        label = spelling.setdefault(_key(label), label)
        if label_of.setdefault(_key(folder), label) != label:
            raise UsageError(
                f"--labels gives the folder {folder!r} two labels: {label_of[_key(folder)]} and {label}", "Give one"
            )
    if not label_of:
        raise UsageError("--labels is empty", f"Give {FOLDERS!r} or pairs: --labels glioma=tumor,notumor=healthy")
    return label_of


def _positive_index(of_label: Mapping[str, list[str]], positive: str | None) -> int | None:
    names = list(of_label)
    if positive in names:
        return names.index(positive)
    if positive is not None:
        alike = [index for index, name in enumerate(names) if _key(name) == _key(positive)]
        if len(alike) == 1:
            return alike[0]
        for label, folders in of_label.items():
            if _key(positive) in map(_key, folders):
                raise DataError(
                    f"no label {positive!r}: folder {positive!r} is part of the label {label!r}",
                    f"Name the label, --positive {shlex.quote(label)}, or keep every folder as a label: "
                    f"--labels {FOLDERS} --positive {shlex.quote(positive)}",
                )
        raise DataError(f"no label {positive!r}", f"Labels: {', '.join(names)}")
    if len(names) > 2:
        return None
    known = KNOWN_FOLDERS | {label: index for index, label in enumerate(KNOWN_LABELS)}
    meanings = [known.get(_key(name)) for name in names]
    if sorted(meanings, key=str) != [0, 1]:
        raise DataError(f"which label is the positive one? Labels: {', '.join(names)}", "Name it: --positive LABEL")
    return meanings.index(1)
