"""Parse the options that describe a model made elsewhere, ``mri-edge export --from``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from mri_edge.authoring.labels import KNOWN_FOLDERS, describe_labels
from mri_edge.errors import UsageError

if TYPE_CHECKING:
    from mri_edge.scans.preprocessing import Preprocessing

    from .sources.adapt import Activation

_EVERY_FOLDER = "folders"  # value of --labels


@dataclass(frozen=True)
class ModelDescription:
    """What a model file does not say: the labels in the order of the outputs, and the preprocessing.

    ``bundle`` is the folder to make. ``classes`` gives the folders of each label, which hold its pictures, below
    ``data``; without ``data`` they are empty. ``activation`` is what turns the outputs into probabilities.
    """

    bundle: Path
    data: Path | None
    classes: dict[str, list[str]]
    positive: int | None
    preprocessing: Preprocessing
    activation: Activation | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels in the order of the outputs."""
        return tuple(self.classes)

    def describe_labels(self) -> str:
        """The labels as one line: ``labels: healthy = no; tumor = glioma, pituitary (positive: tumor)``."""
        positive = None if self.positive is None else self.labels[self.positive]
        if self.data is None:
            return f"{describe_labels({label: [label] for label in self.labels}, positive)}; no pictures to compare on"
        used = {Path(folder).parts[0] for folders in self.classes.values() for folder in folders}
        unused = ", ".join(folder for folder in _folders(self.data) if folder not in used)
        return describe_labels(self.classes, positive) + (f"; folders not used: {unused}" if unused else "")


def parse_description(
    bundle: str | None,
    data: Path | None,
    labels: tuple[str, ...] | None,
    positive: str | None,
    preprocessing: str | None,
    activation: Activation | None = None,
) -> ModelDescription:
    """Check and parse the values of the options.

    Raises
    ------
    UsageError
        An option is missing, or its value is not valid.
    ManifestError
        The preprocessing is not a valid JSON object.
    """
    if bundle is None or labels is None or preprocessing is None:
        needed = {
            "BUNDLE, the folder to be made": bundle,
            "--labels LIST, the model's labels in order": labels,
            "--preprocessing JSON, what the model expects, which is not written in it": preprocessing,
        }
        raise UsageError(
            f"--from still needs {'; '.join(name for name, value in needed.items() if value is None)}",
            "For example: mri-edge export mine --from model.keras --data scans/ --labels no,yes "
            """--preprocessing '{"height": 224, "width": 224, "scale": 1}'""",
        )
    classes = _parse_labels(labels, data)
    if data is None:
        classes = {label: [] for label in classes}
    prepared = _parse_preprocessing(preprocessing)
    return ModelDescription(Path(bundle), data, classes, positive_index(tuple(classes), positive), prepared, activation)


def positive_index(labels: tuple[str, ...], positive: str | None) -> int | None:
    """Index of the label named ``positive``; None without a name if there are more than two labels.

    Of two labels without a name it is the one that means a tumour in public data sets.

    Raises
    ------
    UsageError
        No label has that name, or the label cannot be chosen without a name.
    """
    if positive in labels:
        return labels.index(positive)
    if positive is not None:
        raise UsageError(f"no label {positive!r}", f"Labels: {', '.join(labels)}")
    if len(labels) > 2:
        return None
    known = [KNOWN_FOLDERS.get(label.lower()) for label in labels]
    if None in known or known.count(1) != 1:
        raise UsageError(f"which label is the positive one? Labels: {', '.join(labels)}", "Add --positive LABEL")
    return known.index(1)


def _parse_labels(parts: tuple[str, ...], data: Path | None) -> dict[str, list[str]]:
    """The folders of each label, from the parts of ``--labels``: LABEL, FOLDER=LABEL or, alone, ``folders``."""
    from mri_edge.bundles.decode import is_plain_relative

    if parts == (_EVERY_FOLDER,):
        if data is None:
            raise UsageError("--labels folders needs --data DIR, the folder that contains them", "Name the labels")
        parts = _folders(data)
    classes: dict[str, list[str]] = {}
    for part in parts:
        folder, _, label = part.partition("=")
        folder = folder.rstrip("/")  # which completion in a shell adds
        classes.setdefault(label or folder, []).append(folder)
    mapped = [folder for folders in classes.values() for folder in folders]
    if len(classes) < 2 or len(set(mapped)) < len(mapped) or not all(mapped):
        raise UsageError(
            f"--from needs at least two different --labels, and each folder once. Received: {','.join(parts)!r}"
        )
    if outside := [folder for folder in mapped if data is not None and not is_plain_relative(folder)]:
        raise UsageError(
            f"--labels: {outside[0]!r} does not name a folder inside {data}",
            "Name folders as they are called in --data, without '..', backslash and colon",
        )
    if nested := [(outer, inner) for outer in mapped for inner in mapped if inner.startswith(f"{outer}/")]:
        outer, inner = nested[0]
        raise UsageError(f"--labels: {inner!r} is a part of {outer!r}", "Each image needs one label")
    return classes


def _folders(data: Path) -> tuple[str, ...]:
    """The class folders in alphabetical order, as Keras numbers them. UsageError if ``data`` is unreadable."""
    try:
        return tuple(sorted(path.name for path in data.iterdir() if path.is_dir() and not path.name.startswith(".")))
    except OSError as error:
        raise UsageError(
            f"--data: {data}: cannot read ({error.strerror})", "Name the folder that contains one folder per label"
        ) from error


def _parse_preprocessing(text: str) -> Preprocessing:
    """Parse ``--preprocessing``: a JSON object, or the path of a file that contains one."""
    from mri_edge.bundles.decode import parse, read
    from mri_edge.scans.preprocessing import Preprocessing

    origin = "--preprocessing"
    content: str | bytes = text
    if not text.lstrip().startswith("{"):
        origin = text
        try:
            content = Path(text).read_bytes()
        except OSError as error:
            raise UsageError(f"--preprocessing: {text}: cannot read ({error.strerror})") from error
    document = parse(content, origin)
    preprocessing = read(Preprocessing, document, origin)
    keys = [field.name for field in fields(Preprocessing)]
    if unknown := [key for key in document if key not in keys]:
        raise UsageError(f"{origin}: unknown key {unknown[0]!r}", f"Keys: {', '.join(keys)}")
    if ("height" in document) != ("width" in document):
        raise UsageError(f"{origin}: height and width belong together", "Give both")
    return preprocessing
