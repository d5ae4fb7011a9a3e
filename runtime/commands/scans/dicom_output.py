"""Write DICOM objects for the results of ``predict``, and say what could not be written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mri_edge.errors import InputError, UsageError
from mri_edge.inference.prediction import Failure, Prediction
from mri_edge.inference.series import SeriesPrediction
from mri_edge.services.dicom_results.results import KINDS, DicomResults, Kind

from .classify import notify

if TYPE_CHECKING:
    from mri_edge.inference.classifier import Classifier

Result = TypeVar("Result", Prediction | Failure, SeriesPrediction | Failure)


class DicomOutput:
    """Writes the objects for each result into a folder.

    Attributes
    ----------
    failed
        Results of which no objects could be made.

    Raises
    ------
    UsageError
        As for ``DicomResults``.
    """

    def __init__(self, classifier: Classifier, folder: Path, kinds: frozenset[Kind], *, negatives: bool) -> None:
        self.failed = 0
        self._without = 0
        self._folder = folder
        self._results = DicomResults(classifier, kinds, negatives=negatives)

    def each(self, results: Iterable[Result]) -> Iterator[Result]:
        """Yield each result after its objects are written. Raises OutputError if the folder cannot be written."""
        for result in results:
            if isinstance(result, Prediction | SeriesPrediction):
                self._write(result)
            yield result

    def report(self) -> None:
        """Print on stderr how many files were written, and for how many results there is nothing to report."""
        count = len(self._results.written)
        files = "1 DICOM file" if count == 1 else f"{count} DICOM files"
        notify(f"{files} written to {self._folder}{os.sep}")
        if self._without:
            have = "result has no finding" if self._without == 1 else "results have no finding"
            notify(f"{self._without} {have}, and no DICOM file")

    def _write(self, result: Prediction | SeriesPrediction) -> None:
        try:
            objects = self._results.write(result, self._folder)
        except InputError as error:
            self.failed += 1
            notify(str(error))
            return
        self._without += not objects and getattr(result, "skipped", None) is None


def parse_kinds(text: str) -> frozenset[Kind]:
    """Return the kinds of objects in the value of ``--as``. Raises UsageError."""
    names = {name.strip() for name in text.split(",")}
    if not names <= set(KINDS):
        raise UsageError(f"--as must be {', '.join(KINDS)} or both with a comma. Received: {text!r}")
    return frozenset(kind for kind in KINDS if kind in names)
