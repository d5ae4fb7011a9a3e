"""Answers for series and studies: from the answers for their slices, whatever of them is missing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mri_edge import Classifier, Failure, Prediction, ResultWarning, UsageError
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import SeriesRule
from mri_edge.errors import InputError
from mri_edge.inference.heatmap.curve import draw_curve
from mri_edge.inference.series import SeriesPrediction, StudyPrediction, combine, combine_studies, plan, what_ran
from mri_edge.scans.headers import slice_facts
from mri_edge.testing import FakeEngine

Write = Callable[..., Path]


@pytest.fixture
def classifier(tiny_bundle: Path) -> Iterator[Classifier]:
    """Its probability of "yes" is the gray level of a frame divided by 255; the threshold is 0.5."""
    bundle = Bundle.open(tiny_bundle)
    object.__setattr__(bundle, "manifest", replace(bundle.manifest, threshold=0.5))
    with Classifier(bundle, bundle.manifest.artifacts[0], FakeEngine((128, 128, 3)), batch_size=4) as opened:
        yield opened


def answers(classifier: Classifier, *sources: Any, **options: Any) -> list[SeriesPrediction]:
    found = list(classifier.predict_series(sources, **options))
    assert all(isinstance(result, SeriesPrediction) for result in found)
    return found  # type: ignore[return-value]


def levels(result: SeriesPrediction) -> list[int | None]:
    return [None if p is None else round(p * 255) for p in result.probabilities]


def codes(result: SeriesPrediction) -> set[str]:
    return {warning.code for warning in result.warnings}


def a_series(write: Write, *grays: int | None, folder: str = "s", **facts: Any) -> Path:
    """Write a folder with one file for each slice. The names are in the reverse order of the positions."""
    for number, gray in enumerate(grays):
        name = f"{folder}/{len(grays) - number:03}.slices"
        identifiers = {"study": "1", "series": f"1.{folder}", "instance": f"1.{folder}.{number}"}
        path = write(name, gray, at=5 * number, **{**identifiers, **facts})
    return path.parent


def test_files_become_one_series_sorted_by_position(classifier: Classifier, write_slices: Write) -> None:
    folder = a_series(write_slices, 10, 20, 200, 180, 190, 30)
    (result,) = answers(classifier, folder)
    assert levels(result) == [10, 20, 200, 180, 190, 30]
    assert (result.label, round(result.score * 255), result.window) == ("yes", 190, (2, 4))
    assert Path(result.series.first.source).name == "006.slices"


def test_one_positive_slice_does_not_make_the_series_positive(classifier: Classifier, write_slices: Write) -> None:
    (result,) = answers(classifier, a_series(write_slices, 10, 250, 20, 30))
    assert result.label == "no"
    assert [piece.label for piece in result.slices] == ["no", "yes", "no", "no"]


def test_frames_of_one_file_become_one_series(classifier: Classifier, write_slices: Write) -> None:
    (result,) = answers(classifier, write_slices("volume.slices", *range(10, 30), step=-5, series="1"))
    assert levels(result) == [*range(29, 9, -1)]


def test_a_file_with_two_orientations_becomes_two_series(classifier: Classifier, write_slices: Write) -> None:
    """One is skipped, and the frames of the other one keep their answers."""
    axial = write_slices("a.slices", 10, 20, series="1", instance="1")
    coronal = write_slices("b.slices", 30, 40, series="1", instance="2", orientation=[1, 0, 0, 0, 0, -1])
    first, second = answers(classifier, axial, coronal)
    results = {result.series.plane: result for result in (first, second)}
    assert levels(results["axial"]) == [10, 20]
    skipped = results["coronal"]
    assert (skipped.label, skipped.slices, skipped.skipped and skipped.skipped.code) == (None, (), "plane")
    assert [member.series.parts for member in (first, second)] == [2, 2]


def test_any_plane_is_classified_with_a_warning(classifier: Classifier, write_slices: Write) -> None:
    path = write_slices("b.slices", 30, 40, series="1", orientation=[1, 0, 0, 0, 0, -1])
    (result,) = answers(classifier, path, plane="any")
    assert len(result.slices) == 2
    assert "plane" in codes(result)


def test_a_refused_series_is_skipped_with_the_readers_reason(classifier: Classifier, write_slices: Write) -> None:
    (result,) = answers(classifier, write_slices("l.slices", 30, 40, series="1", refusal="a localizer"))
    assert result.skipped is not None
    assert (result.skipped.code, str(result.skipped)) == ("localizer", "a localizer")


def test_a_series_that_cannot_be_decoded_is_not_just_skipped(classifier: Classifier, write_slices: Write) -> None:
    """A missing decoder must not look like a study without scans."""
    path = write_slices("l.slices", None, series="1", refusal="JPEG Extended", code="unsupported")
    (result,) = answers(classifier, path)
    assert (result.skipped, result.failed) == (None, 1)


def test_slices_that_cannot_be_read_are_counted_and_the_others_answered(
    classifier: Classifier, write_slices: Write
) -> None:
    (result,) = answers(classifier, a_series(write_slices, 10, 200, None, 180, 190))
    assert levels(result) == [10, 200, None, 180, 190]
    assert (result.label, result.failed) == ("yes", 1)
    assert "slices_failed" in codes(result)
    assert "no answer for 1 of 5 slices" in map(str, result.warnings)


def test_a_file_that_breaks_off_keeps_the_answers_before(classifier: Classifier, write_slices: Write) -> None:
    (result,) = answers(classifier, write_slices("v.slices", 10, 20, None, 40, series="1"))
    assert levels(result) == [10, 20, None, None]
    assert "many_slices_failed" in codes(result)


def test_frames_after_one_that_ends_the_reading_say_so(classifier: Classifier, write_slices: Write) -> None:
    found = list(classifier.predict_batches([write_slices("v.slices", 10, None, 30, 40)]))
    assert [(result.index, isinstance(result, Failure)) for result in found] == [
        (0, False),
        (1, True),
        (2, True),
        (3, True),
    ]
    assert "frame 3 was not read, because frame 1 cannot be read" in str(found[3].error)


def test_a_frame_that_fails_leaves_the_answers_after_it(classifier: Classifier, write_slices: Write) -> None:
    path = write_slices("v.slices", 10, 20, 30, series="1")
    results: list[Any] = list(classifier.predict_batches([path]))
    results[1] = Failure(str(path), InputError("damaged frame"), 1, 3)
    (result,) = combine(plan(slice_facts([str(path)])), results, what_ran(classifier))
    assert levels(result) == [10, None, 30]


def test_a_series_without_any_answer_has_no_label(classifier: Classifier, write_slices: Write) -> None:
    (result,) = answers(classifier, a_series(write_slices, None, None))
    assert (result.label, result.score, result.window, result.failed) == (None, None, None, 2)


def test_blank_slices_keep_their_answers_but_do_not_count(classifier: Classifier, write_slices: Write) -> None:
    planned = plan(slice_facts([str(write_slices("v.slices", 200, 200, 200, 10, 20, 10, series="1"))]))
    blank = ResultWarning("blank", "blank, or nearly so")
    results = [
        replace(result, warnings=(blank,)) if isinstance(result, Prediction) and result.index < 3 else result
        for result in classifier.predict_batches(planned.sources)
    ]
    (result,) = combine(planned, results, what_ran(classifier))
    assert isinstance(result, SeriesPrediction)
    assert levels(result)[:3] == [200, 200, 200]
    assert (result.label, result.window) == ("no", (3, 5))
    assert "3 of 6 slices: blank, or nearly so (they do not count)" in map(str, result.warnings)


def test_the_warning_about_a_single_slice_is_in_the_singular(classifier: Classifier, write_slices: Write) -> None:
    planned = plan(slice_facts([str(write_slices("v.slices", 200, series="1"))]))
    colored = ResultWarning("colored", "colored picture")
    (only,) = classifier.predict_batches(planned.sources)
    assert isinstance(only, Prediction)
    (result,) = combine(planned, [replace(only, warnings=(colored,))], what_ran(classifier))
    assert isinstance(result, SeriesPrediction)
    assert "1 of 1 slice: colored picture" in map(str, result.warnings)


def test_blank_slices_do_not_give_a_study_its_label(classifier: Classifier, write_slices: Write) -> None:
    planned = plan(slice_facts([str(write_slices("v.slices", *[10] * 10, series="1"))]))
    manifest = replace(classifier.bundle.manifest, labels=("healthy", "meningioma", "yes"), positive=2)
    ran = replace(what_ran(classifier), manifest=manifest)
    blank = ResultWarning("blank", "blank, or nearly so")
    results = [
        replace(result, label="healthy", warnings=(blank,)) if result.index < 6 else replace(result, label="meningioma")
        for result in classifier.predict_batches(planned.sources)
        if isinstance(result, Prediction)
    ]
    (series,) = combine(planned, results, ran)
    (study,) = combine_studies([series], planned)
    assert isinstance(series, SeriesPrediction)
    assert isinstance(study, StudyPrediction)
    assert study.label == series.label == "meningioma"


def test_a_frame_that_the_reader_leaves_out_is_a_failure(classifier: Classifier, write_slices: Write) -> None:
    path = write_slices("v.slices", 10, 20, 30, series="1")
    planned = plan(slice_facts([str(path)]))
    results = [result for result in classifier.predict_batches([path]) if result.index != 1]
    (result,) = combine(planned, results, what_ran(classifier))
    assert levels(result) == [10, None, 30]
    assert "frame 1 is missing" in str(result.slices[1].error)


def test_a_file_without_a_header_is_a_failure(classifier: Classifier, write_slices: Write, tmp_path: Path) -> None:
    (tmp_path / "bad.slices").write_text("no header")
    failure, result = classifier.predict_series([tmp_path / "bad.slices", write_slices("v.slices", 10)])
    assert isinstance(failure, Failure)
    assert failure.error.code == "damaged"
    assert isinstance(result, SeriesPrediction)


def test_each_file_is_read_once(classifier: Classifier, write_slices: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that contributes to two series."""
    a, b = (
        write_slices(f"{name}.slices", 10, 20, series="1", instance=name, echo=t) for name, t in (("a", 1), ("b", 2))
    )
    seen: list[Any] = []
    predict = classifier.predict_batches

    def recorded(sources: Any, **options: Any) -> Any:
        seen.extend(sources)
        return predict(sources, **options)

    monkeypatch.setattr(classifier, "predict_batches", recorded)
    assert len(answers(classifier, a, b, a)) == 2
    assert sorted(seen) == sorted(map(str, (a, b)))


def test_pictures_are_series_of_one_slice(classifier: Classifier) -> None:
    examples = Path(__file__).parents[2] / "examples"
    results = answers(classifier, examples)
    assert len(results) == len(list(examples.glob("*.jpg")))
    assert all(len(result.slices) == 1 and result.score == result.slices[0].probability for result in results)


def test_pixels_are_not_kept(classifier: Classifier, write_slices: Write) -> None:
    planned = plan(slice_facts([str(write_slices("v.slices", 10, 20))]))
    results = classifier.predict_batches(planned.sources, keep_pixels=True)
    (result,) = combine(planned, results, what_ran(classifier))
    assert all(piece.pixels is None for piece in result.slices)


def test_the_rule_of_the_bundle_decides(tiny_bundle: Path, write_slices: Write) -> None:
    bundle = Bundle.open(tiny_bundle)
    rule = SeriesRule(window_mm=0, least_slices=1, threshold=0.9, calibration="200 patients")
    object.__setattr__(bundle, "manifest", replace(bundle.manifest, threshold=0.5, series=rule))
    with Classifier(bundle, bundle.manifest.artifacts[0], FakeEngine((128, 128, 3))) as classifier:
        low, high = answers(
            classifier, a_series(write_slices, 10, 220, 10), a_series(write_slices, 10, 240, 10, folder="t")
        )
    assert (low.label, high.label) == ("no", "yes")
    assert low.to_dict()["rule"]["calibration"] == "200 patients"
    assert [piece.label for piece in low.slices] == ["no", "yes", "no"]


@pytest.mark.parametrize("of_slices", [None, 0.9])
def test_the_curve_shows_the_threshold_of_the_series(
    classifier: Classifier, write_slices: Write, of_slices: float | None
) -> None:
    (result,) = answers(classifier, a_series(write_slices, 10, 20, 200, 180, 190, 30))

    def plot(series: SeriesPrediction) -> bytes:
        with Image.open(io.BytesIO(draw_curve(series))) as page:
            return page.crop((0, 0, page.width, 300)).tobytes()  # below is the title of the model

    manifest = replace(classifier.bundle.manifest, threshold=of_slices)
    other = replace(result, ran=replace(result.ran, manifest=manifest))
    assert plot(other) == plot(result)
    assert plot(replace(result, threshold=None)) != plot(result)


def test_a_model_without_a_threshold_answers_above_one_half(classifier: Classifier, write_slices: Write) -> None:
    manifest = replace(classifier.bundle.manifest, threshold=None)
    object.__setattr__(classifier.bundle, "manifest", manifest)
    (result,) = answers(classifier, write_slices("v.slices", 140, 140, 140))
    assert (result.label, result.threshold) == ("yes", None)


def test_a_model_without_a_positive_label_answers_slices_only(classifier: Classifier, write_slices: Write) -> None:
    manifest = replace(classifier.bundle.manifest, threshold=None, positive=None)
    object.__setattr__(classifier.bundle, "manifest", manifest)
    (result,) = answers(classifier, write_slices("v.slices", 140, 140, 140))
    assert (result.label, result.score) == (None, None)
    assert [piece.label for piece in result.slices] == ["yes"] * 3
    assert "no_positive_label" in codes(result)


def test_a_study_needs_two_of_three_series(classifier: Classifier, write_slices: Write) -> None:
    """Series of other planes do not count."""
    for name, gray in (("a", 250), ("b", 20), ("c", 30)):
        a_series(write_slices, gray, gray, gray, folder=name)
    a_series(write_slices, 250, 250, folder="d", orientation=[1, 0, 0, 0, 0, -1])
    folder = write_slices("other.slices", 200, study="2", series="2.1").parent
    planned = plan(slice_facts(map(str, sorted(folder.rglob("*.slices")))))
    results = combine(planned, classifier.predict_batches(planned.sources), what_ran(classifier))
    studies = {study.study: study for study in combine_studies(results, planned)}
    assert set(studies) == {"1", "2"}
    assert (studies["1"].label, round(studies["1"].score * 255), len(studies["1"].series)) == ("no", 30, 4)
    assert studies["2"].label == "yes"


def test_the_identity_follows_the_slices_and_not_their_folder(
    classifier: Classifier, write_slices: Write, tmp_path: Path
) -> None:
    folder = a_series(write_slices, 10, 20, 30)
    moved = folder.rename(tmp_path / "moved")
    (first,) = answers(classifier, moved)
    (again,) = answers(classifier, moved.rename(tmp_path / "s"))
    assert first.identity == again.identity
    a_series(write_slices, 10, 20, 30, 40)
    (grown,) = answers(classifier, folder)
    assert grown.identity != first.identity


def test_an_empty_folder_is_an_error(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (failure,) = classifier.predict_series(tmp_path / "empty")
    assert isinstance(failure, Failure)


@pytest.mark.parametrize("plane", ["Axial", "sagittal", ""])
def test_an_unknown_plane_is_an_error_and_no_filter(classifier: Classifier, write_slices: Write, plane: str) -> None:
    with pytest.raises(UsageError, match=rf"a plane must be axial or any. Received: '{plane}'"):
        classifier.predict_series(write_slices("v.slices", 10), plane=plane)  # type: ignore[arg-type]


def test_a_closed_classifier_is_an_error(classifier: Classifier, write_slices: Write) -> None:
    classifier.close()
    with pytest.raises(UsageError, match="closed"):
        list(classifier.predict_series(write_slices("v.slices", 10)))
