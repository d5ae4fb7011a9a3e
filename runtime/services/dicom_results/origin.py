"""Find out to which patient, study and instances a result belongs, from the headers of its slices."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass

from mri_edge.errors import InputError
from mri_edge.inference.series import SeriesPrediction
from mri_edge.scans.patient import patients, read_study, taken_at

_UNDATED = ("19000101", "000000")  # of anonymized scans: an object must have a date, and the present one would vary
_CHANGED = "Copy or export it again"


@dataclass(frozen=True)
class Reference:
    """One slice: the class and the identifier of its instance, and the number of its frame, from 1, if it has many."""

    sop_class: str
    instance: str
    frame: int | None


@dataclass(frozen=True)
class Predecessor:
    """An earlier report on the same series, by its identifiers, and the slices that it is about; see ``slice_keys``."""

    study: str
    series: str
    sop_class: str
    instance: str
    slices: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Origin:
    """Where a result comes from.

    Attributes
    ----------
    study
        Elements of the patient and study modules by keyword, from the first slice.
    references
        For each slice of the result, in its order.
    date, time
        When the last slice was taken, as DICOM writes them. The objects have it as their date, because objects that are
        made again from the same scan must be equal.
    key
        SHA-256 over the identifiers of the slices and of the artifact: 64 hexadecimal digits.
    series_key
        The same over the identifier of the series and that of the artifact.
    """

    study: dict[str, str]
    references: tuple[Reference, ...]
    date: str
    time: str
    key: str
    series_key: str


def origin_of(result: SeriesPrediction) -> Origin:
    """Read the headers of the slices of a result.

    Raises
    ------
    InputError
        The slices are not DICOM, lack identifiers, belong to different patients, or cannot be read any more.
    """
    series = result.series
    if series.first.kind != "dicom":
        raise _refused(result, "it is not a DICOM file, so there is no study to which one belongs")
    if series.uid is None or series.study is None:
        raise _refused(result, "its header names no series or no study")
    headers: dict[str, dict[str, str]] = {}
    references = []
    for facts in series.slices:
        header = headers.get(facts.source) or headers.setdefault(facts.source, read_study(facts.source))
        if facts.instance is None or header.get("SOPClassUID") is None:
            raise _refused(result, "the header of a slice does not identify it")
        if header.get("SOPInstanceUID") != facts.instance:
            raise InputError(f"{facts.source}: has changed since it was classified", _CHANGED)
        references.append(
            Reference(header["SOPClassUID"], facts.instance, facts.index + 1 if facts.count > 1 else None)
        )
    if len(patients(headers.values())) > 1:
        raise _refused(result, "its slices belong to different patients")
    first = headers[series.first.source]
    date, time = max((found for header in headers.values() if (found := taken_at(header))), default=_UNDATED)
    artifact = result.ran.artifact.sha256
    slices = sorted((reference.instance, reference.frame or 0) for reference in references)
    return Origin(
        study={**first, "StudyInstanceUID": series.study},
        references=tuple(references),
        date=date,
        time=time,
        key=digest(series.study, series.uid, slices, artifact),
        series_key=digest(series.study, series.uid, artifact),
    )


def slice_keys(result: SeriesPrediction) -> tuple[str, ...]:
    """Return what identifies each slice of a result: its instance, and the index of its frame."""
    return tuple(f"{facts.instance}#{facts.index}" for facts in result.series.slices)


def digest(*facts: object) -> str:
    """Return the SHA-256 over facts that JSON can write, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def derived_uid(sha256: str) -> str:
    """Return the unique identifier that follows from a hash: a UUID under the root 2.25 (PS3.5 B.2)."""
    return f"2.25.{uuid.UUID(hex=sha256[:32], version=5).int}"


def _refused(result: SeriesPrediction, reason: str) -> InputError:
    return InputError(f"{result.series.first.source}: no DICOM result: {reason}", code="unsupported")
