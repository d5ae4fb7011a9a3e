"""Write the answer for a series as a structured report: Comprehensive 3D SR by template TID 1500, made with highdicom.

It has one group of measurements (TID 1501) about the whole series. The templates for regions (TID 1410 and 1411) do not
apply, because the model marks no region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mri_edge.errors import InputError
from mri_edge.inference.series import SeriesPrediction

from .objects import PROGRAM, SERIES_DESCRIPTION, ResultObject, complete, finish
from .origin import Origin, Predecessor, Reference, derived_uid, digest, slice_keys

if TYPE_CHECKING:
    from highdicom import sr
    from pydicom import Dataset

TUMOR_LABELS = {"neoplasm", "tumor", "tumour"}
"""Labels of models for which the finding of the report, a neoplasm, is right."""

_SERIES_NUMBER = 9001  # scanners count from 1
_DIGITS = 6  # of the probability


def report(result: SeriesPrediction, origin: Origin, predecessors: Sequence[Predecessor] = ()) -> ResultObject:
    """Return the report on a series that has a score.

    It says whether a neoplasm of the brain is present, with the score as the probability, the algorithm with its
    threshold and the hash of the model, and the slices from which the score comes. It is unverified and preliminary. It
    names the ``predecessors``, earlier reports that it replaces (PS3.3 C.17.2, Predecessor Documents Sequence).

    Raises
    ------
    InputError
        The slices are instances of a class that highdicom does not know.
    """
    from highdicom import sr

    evidence = [_evidence(reference, origin, result.series.uid) for reference in dict.fromkeys(origin.references)]
    try:
        document = sr.Comprehensive3DSR(
            evidence=evidence,
            content=_content(result, origin)[0],
            series_instance_uid=derived_uid(origin.series_key),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=derived_uid(origin.key),
            instance_number=1,
            is_complete=True,
            is_final=False,
            is_verified=False,
            previous_versions=[_identified(predecessor) for predecessor in predecessors] or None,
        )
    except KeyError as error:
        source = result.series.first.source
        raise InputError(f"{source}: no DICOM result: its SOP class is unknown", code="unsupported") from error
    number = max(1, result.series.part)
    complete(document, origin, result.ran, "sr", series_number=_SERIES_NUMBER, instance_number=number)
    return replace(finish(document, f"sr-{origin.key[:16]}.dcm"), slices=slice_keys(result))


def _evidence(reference: Reference, origin: Origin, series: str | None) -> Dataset:
    """Return what highdicom needs of a slice. It would check the patient's values, and quote those that break rules."""
    from pydicom import Dataset

    evidence = Dataset()
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(evidence, keyword, "")
    evidence.StudyDate = evidence.StudyTime = None
    evidence.StudyInstanceUID, evidence.SeriesInstanceUID = origin.study["StudyInstanceUID"], series
    evidence.SOPClassUID, evidence.SOPInstanceUID = reference.sop_class, reference.instance
    return evidence


def _identified(predecessor: Predecessor) -> Dataset:
    """Return an earlier report as highdicom takes it."""
    from pydicom import Dataset

    earlier = Dataset()
    earlier.StudyInstanceUID, earlier.SeriesInstanceUID = predecessor.study, predecessor.series
    earlier.SOPClassUID, earlier.SOPInstanceUID = predecessor.sop_class, predecessor.instance
    return earlier


def _content(result: SeriesPrediction, origin: Origin) -> sr.MeasurementReport:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    ran, finding = result.ran, codes.SCT.Neoplasm
    score, window = result.score, result.window
    if score is None or window is None:
        raise ValueError("a report needs a score")
    present = codes.SCT.Present if result.label == ran.manifest.positive_label else codes.SCT.Absent
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derived_uid(digest(origin.key, "finding")), identifier=f"{PROGRAM} finding"
        ),
        finding_type=finding,
        finding_sites=[sr.FindingSite(codes.SCT.Brain)],
        algorithm_id=sr.AlgorithmIdentification(
            name=ran.manifest.name,
            version=ran.manifest.version,
            family=codes.DCM.ArtificialIntelligence,
            parameters=_parameters(result),
        ),
        measurements=[sr.Measurement(name=codes.DCM.Probability, value=round(score, _DIGITS), unit=codes.UCUM.NoUnits)],
        qualitative_evaluations=[sr.QualitativeEvaluation(name=finding, value=present)],
        source_images=[
            sr.SourceImageForMeasurementGroup(
                reference.sop_class, reference.instance, None if reference.frame is None else [reference.frame]
            )
            for reference in origin.references[window[0] : window[1] + 1]
        ],
    )
    # The template may be extended (PS3.16 TID 1501).
    comment = sr.TextContentItem(codes.DCM.Comment, _comment(result), sr.RelationshipTypeValues.CONTAINS)
    group[0].ContentSequence.append(comment)
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid(digest(PROGRAM, ran.artifact.sha256)), name=PROGRAM, model_name=ran.manifest.title
        ),
    )
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=sr.CodedConcept("24590-2", "LN", "MR Brain"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )


def _parameters(result: SeriesPrediction) -> list[str]:
    """Return what determined the answer, as one text for each parameter of the algorithm."""
    ran, rule = result.ran, result.rule
    parameters = [
        "threshold: none" if result.threshold is None else f"threshold: {result.threshold:.{_DIGITS}f}",
        f"artifact: {ran.artifact.file}",
        f"SHA-256: {ran.artifact.sha256}",
        f"engine: {ran.engine}, {ran.provider}",
    ]
    if len(result.series.slices) > 1:
        window = f"in a window of at least {rule.window_mm:g} mm and {rule.least_slices} slices"
        parameters.append(f"score: reached by half of the slices {window}")
        parameters.append(f"rule: {rule.calibration}")
    return parameters


def _comment(result: SeriesPrediction) -> str:
    """Return what a reader must know. Warnings are named by their codes, as their messages may contain file names."""
    count = len(result.series.slices)
    slices = "1 slice" if count == 1 else f"{count} slices"
    sentences = [
        f"{SERIES_DESCRIPTION}, not a medical device.",
        f"From {slices}, {result.failed} of them without an answer." if result.failed else f"From {slices}.",
        "The probability is not calibrated on patients.",
    ]
    if count > 1:
        sentences.append("It is the score of a series: half of the slices in a window of neighbors reach it.")
    found = {warning.code for warning in result.warnings}
    found |= {warning.code for piece in result.slices for warning in getattr(piece, "warnings", ())}
    if found:
        sentences.append(f"Warnings: {', '.join(sorted(found))}.")
    return " ".join(sentences)
