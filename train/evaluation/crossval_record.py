"""Define the record of a cross-validation, ``crossval.json``: its schema, its columns of answers, its text.

The record contains everything that its figures need, so that ``crossval_figures.figures_from`` can compute them again
without images or models.

Schema version 2, one for every recipe. Every metric is ``{value, low, high, images, method}``.

``schema_version``
    2.
``recipe``, ``seed``, ``schedule``
    What was trained. ``teacher`` has the same of the recipe that trained the teachers, or is null.
``protocol``, ``folds``, ``folds_scored``
    ``"folds"``: whole groups are held out; ``"sources"``: one source at a time is. The number of folds, and the numbers
    of those that this record covers, from 1.
``grouping``
    What no fold divides, as text.
``labels``, ``positive``
    Label names in index order, and the index of the positive one, or null.
``excluded``, ``patients``
    Files that the user excluded, and the name of the file with the patients, or null.
``split_fingerprint``
    Of the split that a bundle of this recipe gets on these data without ``--groups``, or null if they cannot be split.
``calibration``
    ``{model: [{fold, temperature, threshold}]}``: what each fold's model got from its own validation images; either
    value may be null.
``pooled``
    ``{model: figures}`` over all images. It puts the probabilities of all folds, which come from different models, on
    one scale. ``figures`` are the metrics of ``metrics.measure`` at the thresholds of ``calibration``, and
    ``confusion_matrix`` (rows: truth), ``right_by_folder`` and, with more than two labels, ``by_label``; with a
    positive label also ``false_positive_rate_at_sensitivity``. Undefined metrics are missing.
``by_source``
    ``{source: {model: figures}}``.
``by_fold``
    ``[{fold, sources, models: {model: figures}}]``.
``mean_of_folds``
    ``{model: {"auc" or "macro_auc": metric}}``: the mean of the folds' own values, which compares probabilities only
    within one model. Where it exceeds the pooled value, the folds' scales differ.
``threshold``
    Chosen on the out-of-fold answers of all folds: ``{value, rule, images}``. With at least two folds also ``by_fold``,
    ``[{fold, value}]``, each chosen on the answers of the other folds, and ``sensitivity`` and ``specificity``, in
    which each fold is judged at its value of ``by_fold``. Null without a positive label, or if the answers are all of
    one class. Of a distillation, it is that of the students. ``crossval_figures.threshold_for`` chooses one for any
    bundle.
``pooled_at_threshold_of_other_folds``
    ``{model: figures}`` at the thresholds ``threshold.by_fold``, where there are any.
``student_minus_teacher``, ``student_minus_teacher_by_fold``, ``student_minus_teacher_at_threshold_of_other_folds``
    Only of a distillation: paired differences of metrics, for each student.
``stress``
    ``{model: {change: metrics}}`` of held-out scans with changed framing, gray levels and image quality. Only these
    cannot be computed from the record.
``images``
    Columns with one entry per scored image: ``file`` (relative to the data folder), ``sha256`` (its first 16 digits),
    ``label``, ``group``, ``source``, ``fold``, ``selectable`` (1 if the image may choose a threshold; 0 for images that
    test a bundle of this recipe, and images near them), ``probabilities`` (``{model: [[one per label]]}``, with 6
    significant digits) and ``called`` (``{model: [label index]}``).
``creation``
    Versions and date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.split import short
from mri_edge.errors import DataError
from mri_edge.train.data.collection import Collection, Indices

SCHEMA_VERSION = 2
TEACHER, SINGLE = "teacher", "model"  # names of models; students are "student SEED"
_DIGITS = 6  # of probabilities


@dataclass(frozen=True)
class ScoredImages:
    """The columns of a record as arrays, with one entry per image.

    ``sha256`` has 16 digits, ``folder`` is the class folder, ``selectable`` is bool. ``probabilities`` float64
    (N, classes) and ``called`` are of each model.
    """

    sha256: NDArray[np.str_]
    folder: NDArray[np.str_]
    label: Indices
    group: Indices
    source: NDArray[np.str_]
    fold: Indices
    selectable: NDArray[np.bool_]
    probabilities: dict[str, NDArray[np.float64]]
    called: dict[str, Indices]

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> ScoredImages:
        """Read the columns of a record.

        Raises
        ------
        DataError
            The record has another schema version.
        """
        if record.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"a cross-validation of schema version {record.get('schema_version')}; {SCHEMA_VERSION} is needed",
                "Run the cross-validation again",
            )
        columns = record["images"]
        return cls(
            sha256=np.array(columns["sha256"], np.str_),
            folder=np.array([file.rpartition("/")[0] for file in columns["file"]], np.str_),
            source=np.array(columns["source"], np.str_),
            selectable=np.array(columns["selectable"], bool),
            label=np.array(columns["label"], np.intp),
            group=np.array(columns["group"], np.intp),
            fold=np.array(columns["fold"], np.intp),
            probabilities={name: np.array(rows, np.float64) for name, rows in columns["probabilities"].items()},
            called={name: np.array(labels, np.intp) for name, labels in columns["called"].items()},
        )


def image_columns(
    data: Collection,
    fold_of: Indices,
    selectable: NDArray[np.bool_],
    probabilities: Mapping[str, NDArray[np.floating[Any]]],
    called: Mapping[str, Indices],
) -> dict[str, Any]:
    """Return the columns ``images`` of a record, in plain types.

    Parameters
    ----------
    fold_of
        int (N,): the fold that scored each image, 0 for none. Only scored images get into the record.
    selectable
        bool (N,): images that may choose a threshold.
    probabilities, called
        float (N, classes) and int (N,) of each model.
    """
    rows = np.flatnonzero(fold_of)
    scans = [data.scans[row] for row in rows.tolist()]
    return {
        "file": [scan.file for scan in scans],
        "sha256": [short(scan.sha256) for scan in scans],
        "label": data.label[rows].tolist(),
        "group": data.group[rows].tolist(),
        "source": data.source[rows].tolist(),
        "fold": fold_of[rows].tolist(),
        "selectable": selectable[rows].astype(int).tolist(),
        "probabilities": {name: _rounded(table[rows].tolist()) for name, table in probabilities.items()},
        "called": {name: labels[rows].tolist() for name, labels in called.items()},
    }


def _rounded(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[float(f"{value:.{_DIGITS}g}") for value in row] for row in rows]


def to_json(record: Mapping[str, Any]) -> str:
    """Return JSON text with each column of ``images`` on one line, so that it is small and can be compared by line."""
    others = {name: value for name, value in record.items() if name != "images"}
    head = json.dumps(others, indent=1, allow_nan=False).removesuffix("\n}")
    return f'{head},\n "images": {_columns(record["images"], 1)}\n}}\n'


def _columns(columns: Mapping[str, Any], depth: int) -> str:
    lines = [
        f"{' ' * (depth + 1)}{json.dumps(name)}: "
        + (
            _columns(column, depth + 1)
            if isinstance(column, dict)
            else json.dumps(column, separators=(",", ":"), allow_nan=False)
        )
        for name, column in columns.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{' ' * depth}}}"
