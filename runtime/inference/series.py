"""Define the answers for a series and for a study, and build them from the answers for their slices."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, get_args

from mri_edge.bundles.manifest import Artifact, Manifest, SeriesRule
from mri_edge.errors import InputError, UsageError
from mri_edge.scans.checks import ResultWarning
from mri_edge.scans.fallback import options_for
from mri_edge.scans.series import Series, SliceFacts, group

from .aggregate import Score, rule_of, series_score, study_score
from .prediction import NOTICE, SCHEMA_VERSION, Failure, Prediction

if TYPE_CHECKING:
    from .classifier import Classifier

Plane = Literal["axial", "any"]
By = Literal["series", "study"]
# Keys that every slice of a series has in common, which are written once.
COMMON = (
    "schema_version",
    "positive",
    "threshold",
    "model",
    "model_hash",
    "artefact",
    "engine",
    "provider",
    "notice",
)
# Codes of refusals of what belongs to most studies but is no picture of the anatomy. Other refusals are failures.
_UNSUITABLE = {"localizer", "map", "mosaic", "no_pixels", "not_mr"}
_MANY_FAILED = 0.25  # proportion of slices without an answer from which a series gets a warning


@dataclass(frozen=True)
class Ran:
    """What answered: the model, its rule for series, the artifact, the engine and the provider."""

    manifest: Manifest
    artifact: Artifact
    engine: str
    provider: str

    def to_dict(self) -> dict[str, Any]:
        """Return the keys that every result has."""
        return {
            "model": self.manifest.title,
            "model_hash": self.artifact.sha256[:12],
            "artefact": self.artifact.file,
            "engine": self.engine,
            "provider": self.provider,
        }


def what_ran(classifier: Classifier) -> Ran:
    """Return what answers, for the results of a classifier."""
    engine = classifier.engine
    return Ran(classifier.bundle.manifest, classifier.artifact, engine.name, engine.provider)


@dataclass(frozen=True)
class SeriesPrediction:
    """The answer for one series, or for one part of it if its slices differ in geometry, echo or image type.

    Attributes
    ----------
    series
        What the headers say, and the slices in order.
    slices
        A result for each slice, in the order of ``series.slices``. Empty if the series was skipped.
    label
        The positive label if ``score`` reaches the threshold, otherwise the most frequent other label; None without a
        score.
    score
        See ``aggregate``. It is compared with the threshold, but it is no probability of the series. None if the series
        was skipped, if every slice is blank or could not be read, or for a model without a positive label.
    window
        Positions in ``slices`` of the first and last slice from which the score comes, or None.
    threshold
        Least score of a positive series, or None for a model without a threshold.
    rule
        How the score was made.
    skipped
        Why the series was not classified, or None.
    warnings
        Reasons to distrust the answer for the series; each slice has its own.
    ran
        What answered.
    curve_file
        Path of the picture of the probability along the series, if one was written.
    identifiers
        Name, patient ID, birth date and accession number, if the caller asked for them, otherwise empty.
    """

    series: Series
    slices: tuple[Prediction | Failure, ...]
    label: str | None
    score: float | None
    window: tuple[int, int] | None
    threshold: float | None
    rule: SeriesRule
    skipped: ResultWarning | None
    warnings: tuple[ResultWarning, ...]
    ran: Ran = field(repr=False)
    curve_file: str | None = None
    identifiers: Mapping[str, str | None] = field(default_factory=dict, repr=False)

    @property
    def identity(self) -> str:
        """Identifies the series, its slices and the rule: it changes when a slice is added."""
        return series_identity(self.series, self.rule)

    @property
    def failed(self) -> int:
        """How many slices could not be read."""
        return sum(isinstance(result, Failure) for result in self.slices)

    @property
    def probabilities(self) -> tuple[float | None, ...]:
        """The probability of the positive label in each slice, or None for a slice without an answer.

        For a model without a positive label it is the probability of the label of the slice.
        """
        return tuple(result.probability if isinstance(result, Prediction) else None for result in self.slices)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, which ``mri-edge predict --by series --json`` prints; see ``series.schema.json``."""
        return {"schema_version": SCHEMA_VERSION, "by": "series", **self._facts(), **self.ran.to_dict()} | {
            "notice": NOTICE
        }

    def _facts(self) -> dict[str, Any]:
        """Return what is about this series, without what ran."""
        series, positions = self.series, self.series.positions
        window = self.window and {
            "first": self.window[0],
            "last": self.window[1],
            "from_mm": positions[self.window[0]],
            "to_mm": positions[self.window[1]],
        }
        return {
            "id": self.identity,
            "study": series.study,
            "series": series.uid,
            "part": series.part,
            "parts": series.parts,
            "file": series.first.source,
            "plane": series.plane,
            "distance_mm": None if series.distance is None else round(series.distance, 3),
            "label": self.label,
            "score": self.score,
            "positive": self.ran.manifest.positive_label,
            "threshold": self.threshold,
            "rule": {
                "window_mm": self.rule.window_mm,
                "least_slices": self.rule.least_slices,
                "calibration": self.rule.calibration,
            },
            "window": window,
            "count": len(series.slices),
            "failed": self.failed,
            **({} if self.skipped is None else {"skipped": asdict(self.skipped)}),
            "slices": [
                {"position_mm": position, **_slice(result)}
                for position, result in zip(positions, self.slices, strict=False)
            ],
            "warnings": [asdict(warning) for warning in self.warnings],
            **({} if self.curve_file is None else {"curve": self.curve_file}),
            **({"identifiers": dict(self.identifiers)} if self.identifiers else {}),
        }


@dataclass(frozen=True)
class StudyPrediction:
    """The answer for the series of one study.

    Attributes
    ----------
    study
        Unique identifier of DICOM, or None for a file of another format, which is a study of its own.
    series
        The answers for its series. Those that were skipped, or that have no score, do not count.
    label, score
        As for a series; the score is the second highest of three or more series, otherwise the highest.
    threshold
        That of the series.
    ran
        What answered.
    """

    study: str | None
    series: tuple[SeriesPrediction, ...]
    label: str | None
    score: float | None
    threshold: float | None
    ran: Ran = field(repr=False)

    @property
    def identity(self) -> str:
        """Identifies the study, its slices, and which of its series were classified."""
        return study_identity([(member.identity, member.skipped is None) for member in self.series])

    @property
    def failed(self) -> int:
        """How many slices could not be read."""
        return sum(series.failed for series in self.series)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, which ``mri-edge predict --by study --json`` prints; see ``series.schema.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "by": "study",
            "id": self.identity,
            "study": self.study,
            "label": self.label,
            "score": self.score,
            "positive": self.ran.manifest.positive_label,
            "threshold": self.threshold,
            "series": [series._facts() for series in self.series],
            **self.ran.to_dict(),
            "notice": NOTICE,
        }


@dataclass(frozen=True)
class Plan:
    """What will be classified, from headers alone.

    Attributes
    ----------
    series
        Every series, in the order of its first slice.
    skipped
        For each series, why it is not classified, or None.
    failures
        Files of which no header could be read.
    """

    series: tuple[Series, ...]
    skipped: tuple[ResultWarning | None, ...]
    failures: tuple[Failure, ...] = ()

    @property
    def taken(self) -> list[Series]:
        """Return the series that are classified."""
        return [series for series, reason in zip(self.series, self.skipped, strict=True) if reason is None]

    @property
    def sources(self) -> list[str]:
        """Return each file to read, once, in the order of the slices."""
        return list(dict.fromkeys(facts.source for series in self.taken for facts in series.slices))

    def without(self, has_answer: Callable[[str], bool], by: By, rule: SeriesRule) -> Plan:
        """Return the plan without the series or studies of which the identity has an answer already."""
        identities = [series_identity(series, rule) for series in self.series]
        if by == "study":
            members: dict[str, list[tuple[str, bool]]] = {}
            for series, identity, reason in zip(self.series, identities, self.skipped, strict=True):
                members.setdefault(_study_key(series), []).append((identity, reason is None))
            identities = [study_identity(members[_study_key(series)]) for series in self.series]
        kept = [number for number, identity in enumerate(identities) if not has_answer(identity)]
        return replace(
            self,
            series=tuple(self.series[number] for number in kept),
            skipped=tuple(self.skipped[number] for number in kept),
        )


def series_identity(series: Series, rule: SeriesRule) -> str:
    """Return 16 hex digits that identify a series by its slices and the rule for its answer."""
    # Slices with identifiers are the same in whichever folder they are; other files are known by their paths.
    slices = sorted((facts.instance or facts.source, facts.index) for facts in series.slices)
    return _digest([series.study, series.uid, slices, rule.window_mm, rule.least_slices, rule.threshold])


def study_identity(series: Sequence[tuple[str, bool]]) -> str:
    """Return 16 hex digits that identify a study by its series, and whether each of them is classified."""
    return _digest(sorted(series))


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def plan(slices: Iterable[SliceFacts | InputError], plane: Plane = "axial") -> Plan:
    """Group slices and decide which series to classify.

    A series of another plane is skipped, because the training scans of other planes nearly all show a tumor. A series
    that is no picture of the anatomy is skipped too, such as a localizer. Pictures have no plane and are taken.

    Raises UsageError for an unknown plane.
    """
    if plane not in get_args(Plane):
        raise UsageError(f"a plane must be {' or '.join(get_args(Plane))}. Received: {plane!r}")
    failures: list[Failure] = []

    def readable() -> Iterator[SliceFacts]:
        for facts in slices:
            if isinstance(facts, InputError):
                failures.append(Failure(facts.source, facts))
            else:
                yield facts

    series = tuple(group(readable()))
    return Plan(series, tuple(_reason_to_skip(member, plane) for member in series), tuple(failures))


def classify_slices(
    plan: Plan, classifier: Classifier, *, batch_size: int | None = None, workers: int | None = None
) -> Iterator[Prediction | Failure]:
    """Classify every slice of a plan, each file once, in the order of ``plan.sources``.

    Slices without a window get one over their whole series. Parameters and errors are those of ``predict_batches``.
    """
    seen: set[str] = set()
    waiting: list[str] = []
    for series in plan.taken:
        sources = [source for facts in series.slices if (source := facts.source) not in seen]
        sources = list(dict.fromkeys(sources))
        seen.update(sources)
        reading = options_for(series, classifier.reading)
        if reading == classifier.reading:  # series that are read alike share their batches
            waiting += sources
            continue
        yield from classifier.predict_batches(waiting, batch_size=batch_size, workers=workers)
        waiting = []
        yield from classifier.predict_batches(sources, batch_size=batch_size, workers=workers, reading=reading)
    yield from classifier.predict_batches(waiting, batch_size=batch_size, workers=workers)


def combine(plan: Plan, results: Iterable[Prediction | Failure], ran: Ran) -> Iterator[SeriesPrediction | Failure]:
    """Yield the failures of the plan, then each series as soon as all of its slices have a result.

    Parameters
    ----------
    results
        For ``plan.sources`` in this order, with all frames of each. Their pixels and heatmaps are not kept.
    """
    yield from plan.failures
    waiting = [_Waiting(series, reason) for series, reason in zip(plan.series, plan.skipped, strict=True)]
    slots: dict[str, dict[int, tuple[_Waiting, int]]] = {}
    for unfinished in waiting:
        if unfinished.reason is None:
            for number, facts in enumerate(unfinished.series.slices):
                slots.setdefault(facts.source, {})[facts.index] = unfinished, number
        else:
            yield unfinished.finish(ran)
    current: str | None = None
    for result in results:
        if current is not None and result.source != current:
            yield from _finish_file(slots.pop(current, {}), None, ran)
        current = result.source
        frames = slots.get(current or "", {})
        if isinstance(result, Failure) and result.frames == 1:  # of the whole file
            yield from _finish_file(frames, result, ran)
        elif (slot := frames.pop(result.index, None)) is not None:
            kept = result if isinstance(result, Failure) else _checked(result, slot[0].series.slices[slot[1]])
            yield from _finish(*slot, kept, ran)
    for frames in slots.values():
        yield from _finish_file(frames, None, ran)


def combine_studies(results: Iterable[SeriesPrediction | Failure], plan: Plan) -> Iterator[StudyPrediction | Failure]:
    """Yield failures as they come, and each study as soon as all of its series have a result."""
    left = Counter(_study_key(series) for series in plan.series)
    found: dict[str, list[SeriesPrediction]] = {}
    for result in results:
        if isinstance(result, Failure):
            yield result
            continue
        key = _study_key(result.series)
        found.setdefault(key, []).append(result)
        left[key] -= 1
        if not left[key]:
            yield _study(found.pop(key))


class _Waiting:
    """A series and the results that it has so far."""

    def __init__(self, series: Series, reason: ResultWarning | None) -> None:
        self.series = series
        self.reason = reason
        self.results: dict[int, Prediction | Failure] = {}

    def finish(self, ran: Ran) -> SeriesPrediction:
        slices = tuple(self.results[number] for number in sorted(self.results))
        return _answer(self.series, slices, self.reason, ran)


def _finish(waiting: _Waiting, number: int, result: Prediction | Failure, ran: Ran) -> Iterator[SeriesPrediction]:
    """Store the result of one slice, and yield the series if it was the last one."""
    waiting.results[number] = result
    if len(waiting.results) == len(waiting.series.slices):
        yield waiting.finish(ran)


def _checked(result: Prediction, facts: SliceFacts) -> Prediction | Failure:
    """Return a result without pixels and heatmap, or a failure if the file was replaced after its header was read."""
    if not is_of(result, facts):
        error = InputError(f"{facts.source}: has changed since its header was read", "Classify it again")
        return Failure(facts.source, error, facts.index, facts.count)
    return replace(result, heatmap=None, pixels=None)


def _finish_file(
    frames: dict[int, tuple[_Waiting, int]], failure: Failure | None, ran: Ran
) -> Iterator[SeriesPrediction]:
    """Give a failure to each frame of a file that has no result: nothing more will come from this file."""
    while frames:
        index, (waiting, number) = frames.popitem()
        facts = waiting.series.slices[number]
        error = (
            failure.error
            if failure is not None
            else InputError(f"{facts.source}: frame {index} is missing", "Export it again", code="damaged")
        )
        yield from _finish(waiting, number, Failure(facts.source, error, index, facts.count), ran)


def _reason_to_skip(series: Series, plane: Plane) -> ResultWarning | None:
    refusals = [facts.refusal for facts in series.slices]
    if (first := refusals[0]) is not None and all(
        refusal is not None and refusal.code in _UNSUITABLE for refusal in refusals
    ):
        return ResultWarning(first.code, first.problem.removeprefix(f"{series.first.source}: "))
    if plane == "axial" and series.plane not in (None, "axial"):
        return ResultWarning("plane", f"{series.plane}, and the model is for axial slices")
    return None


def _answer(
    series: Series, slices: tuple[Prediction | Failure, ...], reason: ResultWarning | None, ran: Ran
) -> SeriesPrediction:
    manifest, rule = ran.manifest, rule_of(ran.manifest)
    answers = [result for result in slices if counts(result)]
    warnings = [*series.warnings, *_warnings(series, slices, manifest)]
    score: Score | None = None
    label = None
    threshold = rule.threshold if rule.threshold is not None else manifest.threshold
    if answers and manifest.positive_label is not None:
        probabilities = [result.probability if counts(result) else None for result in slices]
        score = series_score(series.positions, probabilities, rule)
    if score is not None:
        label = _label(score.value, threshold, answers, manifest)
    return SeriesPrediction(
        series=series,
        slices=slices,
        label=label,
        score=None if score is None else score.value,
        window=None if score is None else (score.first, score.last),
        threshold=threshold,
        rule=rule,
        skipped=reason,
        warnings=tuple(warnings),
        ran=ran,
    )


def series_of_slice(result: Prediction, facts: SliceFacts, ran: Ran) -> SeriesPrediction:
    """Return the answer for one slice as that for a series of one slice: with the label and threshold of the slice."""
    (series,) = group([facts])
    answer = _answer(series, (result,), None, ran)
    return replace(answer, label=None if answer.score is None else result.label, threshold=result.threshold)


def is_of(result: Prediction, facts: SliceFacts) -> bool:
    """Whether a result and a header, which were read from the same path at different times, are of one DICOM instance.

    Only DICOM identifies its instances: two scans of other formats count as the same.
    """
    record = result.metadata.get("dicom")
    if record is None or facts.kind != "dicom":
        return record is None and facts.kind != "dicom"
    return bool(record["sop"] == facts.instance)


def counts(result: Prediction | Failure) -> TypeGuard[Prediction]:
    """Whether the answer for a slice counts for its series: it has one, and the slice is not blank.

    Volumes begin and end with slices beside the head, about which the answer of the model means nothing.
    """
    return isinstance(result, Prediction) and all(warning.code != "blank" for warning in result.warnings)


def _label(score: float, threshold: float | None, answers: Sequence[Prediction], manifest: Manifest) -> str:
    """Return the label of a score: the positive one, or the most frequent other label of these answers.

    A model without a threshold answers with the likeliest label, which is the positive one above one half.
    """
    positive = manifest.positive_label
    if positive is not None and (score >= threshold if threshold is not None else score > 1 / 2):
        return positive
    others = [answer.label for answer in answers if answer.label != positive]
    if not others:  # the positive slices are too far apart
        others = [
            max((label for label in manifest.labels if label != positive), key=answer.probabilities.__getitem__)
            for answer in answers
        ]
    return Counter(others).most_common(1)[0][0]


def _warnings(series: Series, slices: Sequence[Prediction | Failure], manifest: Manifest) -> Iterator[ResultWarning]:
    failed = sum(isinstance(result, Failure) for result in slices)
    of_all = "of 1 slice" if len(slices) == 1 else f"of {len(slices)} slices"
    if failed:
        code = "many_slices_failed" if failed > _MANY_FAILED * len(slices) else "slices_failed"
        yield ResultWarning(code, f"no answer for {failed} {of_all}", failed, 0)
    if slices and series.plane not in (None, "axial"):
        yield ResultWarning("plane", f"{series.plane}: the training scans of this plane nearly all show a tumor")
    if manifest.positive_label is None:
        yield ResultWarning("no_positive_label", "the model has no positive label, so only its slices have answers")
    found = [
        {warning.code: warning.message for warning in result.warnings}
        for result in slices
        if isinstance(result, Prediction)
    ]
    for code in sorted({code for messages in found for code in messages}):
        having = [messages[code] for messages in found if code in messages]
        effect = " (they do not count)" if code == "blank" else ""
        yield ResultWarning(code, f"{len(having)} {of_all}: {having[0]}{effect}", len(having), 0)


def _study_key(series: Series) -> str:
    return series.study or f"\0{series.uid or series.first.source}"


def _study(series: Sequence[SeriesPrediction]) -> StudyPrediction:
    first = series[0]
    scored = [member for member in series if member.score is not None]
    score = study_score([member.score for member in scored if member.score is not None])
    answers = [result for member in scored for result in member.slices if counts(result)]
    label = None if score is None else _label(score, first.threshold, answers, first.ran.manifest)
    return StudyPrediction(first.series.study, tuple(series), label, score, first.threshold, first.ran)


def _slice(result: Prediction | Failure) -> dict[str, Any]:
    """Return what the JSON of a series says about one slice: its result, without what all slices share."""
    return {key: value for key, value in result.to_dict().items() if key not in COMMON}
