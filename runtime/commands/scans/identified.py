"""Add what identifies the patient to results, for ``predict --with-identifiers``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mri_edge.inference.prediction import Failure, Prediction
from mri_edge.inference.series import SeriesPrediction
from mri_edge.scans.patient import identifiers


def identify_slices(results: Iterable[Prediction | Failure]) -> Iterator[Prediction | Failure]:
    """Yield the results, those for DICOM files with ``identifiers`` in their metadata. Each header is read again."""
    for result in results:
        found = identifiers(result.source) if isinstance(result, Prediction) and result.source is not None else {}
        if found and isinstance(result, Prediction):
            yield replace(result, metadata={**result.metadata, "identifiers": found})
        else:
            yield result


def identify_series(results: Iterable[SeriesPrediction | Failure]) -> Iterator[SeriesPrediction | Failure]:
    """Yield the results, those for DICOM series with the ``identifiers`` of their first slice."""
    for result in results:
        if isinstance(result, SeriesPrediction):
            yield replace(result, identifiers=identifiers(result.series.first.source))
        else:
            yield result
