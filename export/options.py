"""Parse the options that describe a model made elsewhere, ``mri-edge export --from``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mri_edge.authoring.labels import KNOWN_FOLDERS
from mri_edge.errors import UsageError

if TYPE_CHECKING:
    from mri_edge.scans.preprocessing import Preprocessing


@dataclass(frozen=True)
class ModelDescription:
    """What a model file does not say: the labels in the order of the outputs, and the preprocessing.

    ``bundle`` is the folder to make; ``data`` holds one folder of pictures for each label.
    """

    bundle: Path
    data: Path
    labels: tuple[str, ...]
    positive: int
    preprocessing: Preprocessing


def parse_description(
    bundle: str | None,
    data: Path | None,
    labels: tuple[str, ...] | None,
    positive: str | None,
    preprocessing: str | None,
) -> ModelDescription:
    """Check and parse the values of the options.

    Raises
    ------
    UsageError
        An option is missing, or its value is not valid.
    ManifestError
        The preprocessing is not a valid JSON object.
    """
    if bundle is None or data is None or labels is None or preprocessing is None:
        needed = {
            "BUNDLE, the folder to be made": bundle,
            "--data DIR, pictures to compare and calibrate with": data,
            "--labels LIST, the model's labels in order": labels,
            "--preprocessing JSON, what the model expects, which is not written in it": preprocessing,
        }
        raise UsageError(
            f"--from still needs {'; '.join(name for name, value in needed.items() if value is None)}",
            "For example: mri-edge export mine --from model.keras --data scans/ --labels no,yes "
            """--preprocessing '{"height": 224, "width": 224, "scale": 1}'""",
        )
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UsageError(f"--from needs at least two different --labels. Received: {','.join(labels)!r}")
    prepared = _parse_preprocessing(preprocessing)
    return ModelDescription(Path(bundle), data, labels, positive_index(labels, positive), prepared)


def positive_index(labels: tuple[str, ...], positive: str | None) -> int:
    """Index of the label named ``positive`` or, without a name, of the one that means a tumour in public data sets.

    Raises
    ------
    UsageError
        No label has that name, or the label cannot be chosen without a name.
    """
    if positive in labels:
        return labels.index(positive)
    if positive is not None:
        raise UsageError(f"no label {positive!r}", f"Labels: {', '.join(labels)}")
    known = [KNOWN_FOLDERS.get(label.lower()) for label in labels]
    if None in known or known.count(1) != 1:
        raise UsageError(f"which label is the positive one? Labels: {', '.join(labels)}", "Add --positive LABEL")
    return known.index(1)


def _parse_preprocessing(text: str) -> Preprocessing:
    """Parse ``--preprocessing``: a JSON object, or the path of a file that contains one."""
    from mri_edge.bundles.decode import parse, read
    from mri_edge.scans.preprocessing import Preprocessing

    if text.lstrip().startswith("{"):
        return read(Preprocessing, parse(text, "--preprocessing"), "--preprocessing")
    try:
        content = Path(text).read_bytes()
    except OSError as error:
        raise UsageError(f"--preprocessing: {text}: cannot read ({error.strerror})") from error
    return read(Preprocessing, parse(content, text), text)
