"""List the healthy scans of a folder, in which lesions are drawn to score heatmaps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mri_edge.authoring.labels import KNOWN_FOLDERS, KNOWN_LABELS
from mri_edge.bundles.manifest import Manifest
from mri_edge.errors import DataError, UsageError

from .folder import Scan, find_scans, folder_names, list_scans, pictures_in
from .labels import Labels, match_labels


@dataclass(frozen=True)
class HealthyScans:
    """Healthy scans, the number of other scans in the folder, and one line about how they were found."""

    scans: list[Scan]
    others: int
    text: str


def healthy_labels(manifest: Manifest) -> frozenset[int]:
    """Return the indices of the labels that mean a healthy scan.

    With a positive label these are all others. Without one they are the labels with a name that is known for healthy
    scans, or with such a training folder.

    Raises
    ------
    UsageError
        The model has no positive label, and no label with a known name.
    """
    indices = range(len(manifest.labels))
    if manifest.positive is not None:
        return frozenset(index for index in indices if index != manifest.positive)
    known = {KNOWN_LABELS[0], *(folder for folder, index in KNOWN_FOLDERS.items() if index == 0)}
    found = frozenset(
        index
        for index, label in enumerate(manifest.labels)
        if known & {name.strip().lower() for name in (label, *manifest.training.classes.get(label, []))}
    )
    if not found:
        raise UsageError(
            f"heatmaps cannot be scored: the model has no positive label, and it is not known which of its labels "
            f"means a healthy scan. Labels: {', '.join(manifest.labels)}",
            f"Names that are known for healthy scans: {', '.join(sorted(known))}",
        )
    return found


def find_healthy(data: Path, manifest: Manifest, rule: str | None = None) -> HealthyScans:
    """List healthy scans.

    A folder with class folders, as ``find_scans`` reads it, gives the scans with a healthy label. Any other folder is
    one of healthy scans only, with its subfolders. A folder has class folders if ``rule`` maps them, or if the name of
    at least one subfolder matches a label of the model: a folder of lesions is then never taken for a healthy one.

    Parameters
    ----------
    rule
        As ``rule`` of ``match_labels``.

    Raises
    ------
    DataError
        There are no healthy scans, the folder itself has the name of another label, or as for ``find_scans``.
    UsageError
        As ``healthy_labels``, or ``rule`` cannot be read.
    """
    healthy = healthy_labels(manifest)
    trained = Labels(manifest.labels, manifest.positive, manifest.training.classes)
    names = ", ".join(repr(manifest.labels[index]) for index in sorted(healthy))
    if rule is None and not any(_label_of(name, trained) is not None for name in folder_names(data)):
        own = _label_of(data.resolve().name, trained)
        if own is not None and own not in healthy:
            raise DataError(
                f"{data}: its name says that its scans are {manifest.labels[own]!r}, and healthy scans are needed",
                "Name a folder of healthy scans",
            )
        scans = list_scans(data, min(healthy))
        return HealthyScans(scans, 0, f"{len(scans)} scans, all taken as healthy")
    if loose := pictures_in(data):
        raise DataError(
            f"{data}: contains pictures ({loose[0].name}) and folders of the model's labels",
            "Move the pictures into a folder, or name the folder of healthy scans",
        )
    found, labels = find_scans(data, rule=rule, trained=trained)
    scans = [scan for scan in found if scan.label in healthy]
    if not scans:
        raise DataError(
            f"{data}: no healthy scan. All {len(found)} scans are {_counted(found, manifest)}; healthy: {names}",
            "Name a folder of healthy scans",
        )
    return HealthyScans(scans, len(found) - len(scans), labels.describe())


def _label_of(folder: str, trained: Labels) -> int | None:
    """Return the index of the label that a folder of this name has, or None."""
    try:
        found = match_labels([folder], trained)
    except DataError:
        return None
    return next(index for index, name in enumerate(trained.names) if found.folders[name])


def _counted(scans: list[Scan], manifest: Manifest) -> str:
    present = sorted({scan.label for scan in scans})
    return ", ".join(manifest.labels[index] for index in present)
