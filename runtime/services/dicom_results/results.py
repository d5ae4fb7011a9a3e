"""Make the DICOM objects for an answer, and write them into a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

from mri_edge.errors import InputError, UsageError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.heatmap.score import required_score
from mri_edge.inference.prediction import Prediction
from mri_edge.inference.series import SeriesPrediction, is_of, series_of_slice, what_ran
from mri_edge.scans.files import special_file_kind
from mri_edge.scans.headers import slice_facts
from mri_edge.storage.atomic import atomic_write, make_folder

from .objects import ResultObject
from .origin import Predecessor

Kind = Literal["sr", "sc"]
KINDS: tuple[Kind, ...] = ("sr", "sc")


class DicomResults:
    """Makes DICOM objects from the answers of one classifier.

    Parameters
    ----------
    classifier
        What answered. It explains the slices for the captures.
    kinds
        ``"sr"``: a structured report for each series; ``"sc"``: heatmaps of its leading slices as Secondary Captures.
    negatives
        Also report series that are not positive, as "Absent". A reader could take that for a clinical negative.

    Attributes
    ----------
    written
        The files that ``write`` has written, each with the SHA-256 of its content.

    Raises
    ------
    UsageError
        pydicom or highdicom is not installed, the model has no label for a tumor, or its heatmaps are not good enough.
    """

    def __init__(self, classifier: Classifier, kinds: Collection[Kind], *, negatives: bool = False) -> None:
        try:
            import highdicom
            import pydicom  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"DICOM results need {error.name}, which is not installed",
                "Install it: pip install 'mri-edge[dicom-out]'",
            ) from error
        from .report import TUMOR_LABELS

        del highdicom
        manifest = classifier.bundle.manifest
        label = manifest.positive_label
        if label is None or ("sr" in kinds and label.lower() not in TUMOR_LABELS):
            received = "no positive label" if label is None else f"the positive label {label!r}"
            raise UsageError(
                f"a DICOM report is about a tumor, and {manifest.title} has {received}", "Choose another --model"
            )
        self._classifier = classifier
        self._kinds = frozenset(kinds)
        self._negatives = negatives
        self.written: dict[Path, bytes] = {}
        self._score = required_score(classifier) if "sc" in kinds else None

    def of(
        self,
        answer: SeriesPrediction | Prediction,
        predecessors: Sequence[Predecessor] = (),
        beat: Callable[[], None] = lambda: None,
    ) -> list[ResultObject]:
        """Return the objects for the answer for a series or a slice; none if there is nothing to report.

        Nothing is reported about a series that was skipped, has no score or, without ``negatives``, is not positive.
        Captures are made of positive series only. If there are ``predecessors``, earlier reports on the same series,
        the report names them, and it is made of a negative answer too: otherwise an earlier finding would stay valid.
        ``beat`` is called after each capture, because their heatmaps may take minutes.

        Raises
        ------
        InputError
            The scan is not DICOM, or its header does not say to which study a result belongs.
        """
        from mri_edge.scans.readers import dicom

        from .captures import captures
        from .origin import origin_of
        from .report import report

        result = self._series_of(answer) if isinstance(answer, Prediction) else answer
        if result.skipped is not None or result.score is None:
            return []
        positive = result.label == result.ran.manifest.positive_label
        if not positive and not (self._negatives or predecessors) and result.series.first.kind == "dicom":
            return []
        with dicom.silenced():
            origin = origin_of(result)
            if not positive and result.failed:
                raise InputError(
                    f"{result.series.first.source}: no DICOM result: a negative report needs an answer for every slice",
                    "Copy the damaged slices again",
                )
            objects = [report(result, origin, predecessors)] if "sr" in self._kinds else []
            if positive and "sc" in self._kinds:
                for capture in captures(result, origin, self._classifier, self._score):
                    objects.append(capture)
                    beat()
        return objects

    def write(self, answer: SeriesPrediction | Prediction, folder: Path) -> int:
        """Write the objects for an answer into a folder, and return how many there are.

        Each file is written as a whole or not at all, and none before all of them are made. Names are derived from the
        identifiers of the scan and the model, so a run that is repeated replaces its files. Within a run only the same
        object is written again.

        Raises
        ------
        InputError
            As for ``of``; or another file with the same SOP Instance UID has another result.
        OutputError
            The folder cannot be written.
        """
        objects = self.of(answer)
        contents = {folder / result.name: result.content for result in objects}
        hashes = {path: hashlib.sha256(content).digest() for path, content in contents.items()}
        if any(self.written.get(path, sha256) != sha256 for path, sha256 in hashes.items()):
            source = answer.source if isinstance(answer, Prediction) else answer.series.first.source
            raise InputError(
                f"{source}: no DICOM result: another file with the same SOP Instance UID has another result"
            )
        if objects:
            make_folder(folder)
        for path, content in contents.items():
            atomic_write(path, content)
            self.written[path] = hashes[path]
        return len(objects)

    def _series_of(self, prediction: Prediction) -> SeriesPrediction:
        source = prediction.source
        if source is None or special_file_kind(source):
            name = source or "the scan"
            raise InputError(f"{name}: no DICOM result: it cannot be read a second time", code="unsupported")
        for facts in slice_facts([source], self._classifier.reading):
            if isinstance(facts, InputError):
                raise facts
            if facts.index == prediction.index and is_of(prediction, facts):
                return series_of_slice(prediction, facts, what_ran(self._classifier))
        raise InputError(f"{source}: has changed since it was classified", "Copy or export it again")
