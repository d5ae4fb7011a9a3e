"""Check and parse the options of ``mri-edge export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mri_edge.authoring.labels import KNOWN_FOLDERS
from mri_edge.errors import UsageError

from .formats import QUANTIZE, format_names

if TYPE_CHECKING:
    from mri_edge.scans.preprocessing import Preprocessing

_DEFAULT_FORMATS = "onnx,tflite"


def choose_formats(listed: str | None, quantize: bool, every: bool) -> tuple[str, ...]:
    """Names of the formats to make, from ``--formats``, ``--quantize`` and ``--all``. UsageError if two are given."""
    if sum((listed is not None, quantize, every)) > 1:
        raise UsageError("--formats, --quantize and --all exclude one another")
    if every:
        return format_names()
    if quantize:
        return QUANTIZE
    names = tuple(dict.fromkeys(_split(listed or _DEFAULT_FORMATS)))
    if unknown := [name for name in names if name not in format_names()]:
        raise UsageError(f"unknown format {unknown[0]!r}", f"Formats: {', '.join(format_names())}")
    return names


def check_from_options(bundle: str | None, data: Path | None, labels: str | None, preprocessing: str | None) -> None:
    """Raise UsageError that lists every option that ``--from`` still needs."""
    needed = {
        "BUNDLE, the folder to be made": bundle,
        "--data DIR, pictures to compare and calibrate with": data,
        "--labels LIST, the model's labels in order": labels,
        "--preprocessing JSON, what the model expects, which is not written in it": preprocessing,
    }
    if missing := [description for description, value in needed.items() if value is None]:
        raise UsageError(
            f"--from still needs {'; '.join(missing)}",
            "For example: mri-edge export mine --from model.keras --data scans/ --labels no,yes "
            """--preprocessing '{"height": 224, "width": 224, "scale": 1}'""",
        )


def parse_labels(text: str) -> tuple[str, ...]:
    """The labels in ``--labels``: at least two, none twice."""
    labels = tuple(_split(text))
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UsageError(f"--from needs --labels, at least two, none twice. Received: {text!r}")
    return labels


def positive_index(labels: tuple[str, ...], positive: str | None) -> int:
    """Index of the positive label: the one that is named, else the one that means tumour in public data sets.

    Raises
    ------
    UsageError
        There is no label of that name; or none is named, and not exactly one of the labels is known to be positive.
    """
    if positive in labels:
        return labels.index(positive)
    if positive is not None:
        raise UsageError(f"no label {positive!r}", f"Labels: {', '.join(labels)}")
    known = [KNOWN_FOLDERS.get(label.lower()) for label in labels]
    if None in known or known.count(1) != 1:
        raise UsageError(f"which label is the positive one? Labels: {', '.join(labels)}", "Add --positive LABEL")
    return known.index(1)


def parse_preprocessing(text: str) -> Preprocessing:
    """The preprocessing in ``--preprocessing``: a JSON object, or the path of a file with one."""
    from mri_edge.bundles.decode import parse, read
    from mri_edge.scans.preprocessing import Preprocessing

    if text.lstrip().startswith("{"):
        return read(Preprocessing, parse(text, "--preprocessing"), "--preprocessing")
    try:
        content = Path(text).read_bytes()
    except OSError as error:
        raise UsageError(f"--preprocessing: {text}: cannot read ({error.strerror})") from error
    return read(Preprocessing, parse(content, text), text)


def _split(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part]
