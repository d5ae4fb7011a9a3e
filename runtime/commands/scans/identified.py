"""Add what identifies the patient to results, for ``predict --with-identifiers``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from mri_edge.errors import InputError
from mri_edge.inference.prediction import Failure, Prediction
from mri_edge.inference.series import SeriesPrediction
from mri_edge.scans.patient import identifiers

from .classify import notify


class Identification:
    """Adds the identifiers of the patient to results for DICOM files. Their headers are read again.

    Attributes
    ----------
    failed
        Results whose identifiers were left out, because a file has changed since it was classified or because the
        slices of a series belong to different patients.
    """

    def __init__(self) -> None:
        self.failed = 0

    def slices(self, results: Iterable[Prediction | Failure]) -> Iterator[Prediction | Failure]:
        """Yield the results, those for DICOM files with ``identifiers`` in their metadata."""
        for result in results:
            found = {}
            if isinstance(result, Prediction) and result.source is not None and "dicom" in result.metadata:
                found = self._found({result.source: result.metadata["dicom"]["sop"]})
            if found and isinstance(result, Prediction):
                yield replace(result, metadata={**result.metadata, "identifiers": found})
            else:
                yield result

    def series(self, results: Iterable[SeriesPrediction | Failure]) -> Iterator[SeriesPrediction | Failure]:
        """Yield the results, those for DICOM series with the ``identifiers`` of the patient of all their slices."""
        for result in results:
            if isinstance(result, SeriesPrediction) and result.series.first.kind == "dicom":
                found = self._found({facts.source: facts.instance for facts in result.series.slices})
                yield replace(result, identifiers=found)
            else:
                yield result

    def _found(self, instances: Mapping[str, str | None]) -> dict[str, str | None]:
        try:
            return identifiers(instances)
        except InputError as error:
            self.failed += 1
            notify(str(error))
            return {}
