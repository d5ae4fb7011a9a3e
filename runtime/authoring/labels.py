"""Labels for the class folders of the public brain-MRI data sets, and the line that describes a mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

KNOWN_LABELS = ("no tumour", "tumour")
# Folder names in lower case -> index in KNOWN_LABELS; 1 is the positive one.
KNOWN_FOLDERS = {"no": 0, "notumor": 0, "yes": 1, "glioma": 1, "meningioma": 1, "pituitary": 1}


def describe_labels(folders: Mapping[str, Sequence[str]], positive: str | None) -> str:
    """Return the folders of each label as one line: ``labels: no tumour = no; tumour = yes (positive: tumour)``."""
    parts = []
    for label, of_label in folders.items():
        mapped = f"{label} = {', '.join(of_label)}" if of_label else f"{label} (no folder)"
        parts.append(label if list(of_label) == [label] else mapped)
    return f"labels: {'; '.join(parts)} ({'no positive label' if positive is None else f'positive: {positive}'})"
