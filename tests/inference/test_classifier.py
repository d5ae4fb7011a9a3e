"""The public API: every kind of source, bounded batches in order, threads, forks, a fake engine."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge import BundleError, Classifier, EngineError, Failure, InputError, Prediction, UsageError
from mri_edge.bundles.bundle import Bundle
from mri_edge.inference import preparing
from mri_edge.scans.frame import Frame
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.testing import FakeEngine

# Float32 sums may be ordered otherwise in another batch size; probabilities have 24 bits.
SAME = 1e-6


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (77, 91, 3), np.uint8))


@pytest.fixture
def classifier(tiny_bundle: Path):
    with Classifier.load(tiny_bundle) as loaded:
        yield loaded


def test_all_kinds_of_source_give_the_same_answer(classifier, picture, tmp_path):
    path = tmp_path / "scan.png"
    picture.save(path)
    sources = [str(path), path, path.read_bytes(), picture, np.asarray(picture), np.asarray(picture.convert("RGBA"))]
    predictions = [classifier.predict(source) for source in sources]
    assert len({prediction.probability for prediction in predictions}) == 1
    assert [prediction.source for prediction in predictions] == [str(path), str(path), None, None, None, None]


def test_a_prediction_records_what_ran(classifier, picture):
    prediction = classifier.predict(picture)
    assert re.fullmatch(r"tiny 1 \([0-9a-f]{8}\)", prediction.model)
    assert (prediction.artifact, prediction.engine, prediction.provider) == (
        "model.onnx",
        "onnxruntime",
        "CPUExecutionProvider",
    )
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=SAME)
    assert prediction.latency_ms.total > 0


def test_batches_keep_order_and_failures_keep_their_place(classifier, picture):
    sources = [picture, b"", picture.rotate(90), "missing.png", np.asarray(picture)]
    results = list(classifier.predict_batches(sources, batch_size=2))
    assert [type(result) for result in results] == [Prediction, Failure, Prediction, Failure, Prediction]
    assert results[3].source == "missing.png"
    for result, source in ((results[0], picture), (results[2], sources[2])):
        assert result.probability == pytest.approx(classifier.predict(source).probability, abs=SAME)


class _BytesPath:
    def __fspath__(self):
        return b"scan.png"


def test_a_source_that_cannot_be_used_fails_alone(classifier, picture):
    file = io.BytesIO()
    picture.save(file, "TIFF")
    closed = Image.open(file)
    closed.close()
    results = list(classifier.predict_batches([picture, closed, picture, _BytesPath(), 5, picture]))
    kinds = [Prediction, Failure, Prediction, Failure, Failure, Prediction]
    assert [type(result) for result in results] == kinds
    assert "its file is closed" in str(results[1].error)
    assert "a path must be text. Received: b'scan.png'" in str(results[3].error)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
@pytest.mark.parametrize("workers", [1, 3])
def test_results_keep_the_input_order_for_every_batch_size_and_worker_count(classifier, picture, batch_size, workers):
    turned = [picture.rotate(9 * turn) for turn in range(20)]
    results = classifier.predict_batches(turned, batch_size=batch_size, workers=workers)
    expected = [classifier.predict(picture).probability for picture in turned]
    assert [result.probability for result in results] == pytest.approx(expected, abs=SAME)


def test_an_input_error_among_the_sources_becomes_a_failure_in_its_place(classifier, picture):
    error = InputError("in: the folder is empty", source="in")
    results = list(classifier.predict_batches([picture, error, picture]))
    assert [type(result) for result in results] == [Prediction, Failure, Prediction]
    assert results[1] == Failure("in", error)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_with_max_wait_scans_are_answered_before_a_slow_source_gives_the_next(classifier, picture, batch_size):
    """Each scan is passed only after the previous answer, so waiting for a full batch would never end."""
    answered = threading.Semaphore(1)

    def sources():
        for source in [picture, b"", picture, picture, b""]:
            assert answered.acquire(timeout=30)
            yield source

    types = []
    for result in classifier.predict_batches(sources(), batch_size=batch_size, max_wait=0.01):
        types.append(type(result))
        answered.release()
    assert types == [Prediction, Failure, Prediction, Prediction, Failure]


def test_with_max_wait_a_fast_source_still_fills_batches(classifier, picture, monkeypatch):
    batches = []
    run = classifier.engine.run_outputs
    monkeypatch.setattr(
        classifier.engine, "run_outputs", lambda batch, names: batches.append(len(batch)) or run(batch, names)
    )
    assert len(list(classifier.predict_batches([picture] * 10, batch_size=4, max_wait=10))) == 10
    assert batches == [4, 4, 2]


def test_results_that_nobody_wants_any_more_stop_the_reader(classifier, picture):
    results = classifier.predict_batches(itertools.repeat(picture), batch_size=2, max_wait=0.01)
    next(results)
    results.close()
    deadline = time.monotonic() + 10
    while any(thread.name == "read sources" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_large_scans_do_not_wait_for_each_other(classifier, picture, monkeypatch):
    waited = []
    resize_sections = Preprocessing.resize_sections
    monkeypatch.setattr(
        Preprocessing,
        "resize_sections",
        lambda self, sections: waited.append(len(sections)) or resize_sections(self, sections),
    )
    large = np.zeros((1500, 1500, 3), np.uint8)  # 6.4 MiB: one is more than may wait
    sources = [large, picture, large, large, b"", picture, picture]
    results = list(classifier.predict_batches(sources, batch_size=7, workers=1))
    assert [type(result) for result in results] == [Prediction] * 4 + [Failure] + [Prediction] * 2
    assert waited == [1, 2, 1, 2]
    assert results[1].probability == pytest.approx(classifier.predict(picture).probability, abs=SAME)


def test_pixels_are_kept_where_they_are_asked_for(classifier, picture):
    [kept] = classifier.predict_batches([picture], keep_pixels=True)
    np.testing.assert_array_equal(kept.pixels, np.asarray(picture))
    [plain] = classifier.predict_batches([picture])
    assert plain.pixels is None


def test_endless_input_is_read_only_a_little_ahead(classifier, picture):
    taken = itertools.count()
    stream = (next(taken) is not None and picture for _ in itertools.count())
    results = classifier.predict_batches(stream, batch_size=4)
    for _ in range(10):
        next(results)
    results.close()
    # 10 results are three batches of 4; two more batches may be on their way.
    assert next(taken) <= 20


@pytest.mark.parametrize("keep_pixels", [False, True])
@pytest.mark.parametrize("scans", [1, 6])
def test_scans_of_many_frames_are_read_only_a_little_ahead(classifier, monkeypatch, scans, keep_pixels):
    """Memory grows neither with the number of frames of a scan nor with that of such scans."""
    read = itertools.count()
    pixels = np.zeros((128, 128, 3), np.uint8)

    def frames(source, reading):
        for index in range(3000):
            next(read)
            yield Frame(pixels, source, index, 3000)

    monkeypatch.setattr(preparing.readers, "read_each", frames)
    results = classifier.predict_batches(["volume"] * scans, batch_size=64, workers=2, keep_pixels=keep_pixels)
    assert [next(results).index for _ in range(100)] == list(range(100))
    results.close()
    # Each thread has a piece of 8 MiB and prepares another one, of frames of 48 KiB that are resized 4 MiB at a time.
    assert next(read) <= 4 * (8 + 4) * 1024 / 48


@pytest.mark.parametrize("piece", [0, 200_000, 8 << 20])
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 2), (5, 4), (64, 3)])
def test_frames_keep_their_order_however_scans_are_read(
    classifier, picture, write_slices, monkeypatch, piece, batch_size, workers
):
    monkeypatch.setattr(preparing, "_MAX_WAITING_BYTES", piece // 2)
    monkeypatch.setattr(preparing, "_MAX_PIECE_BYTES", piece)
    levels = {"long": range(60, 90), "two": (10, 200), "damaged": (10, 20, None, 40), "refused": (None, 20)}
    volumes = {name: str(write_slices(f"{name}.slices", *grays)) for name, grays in levels.items()}
    sources = [picture, volumes["long"], b"", volumes["damaged"], volumes["two"], picture, volumes["refused"]] * 3
    expected = [
        (found.index, found.frames, str(found.error))
        if isinstance(found, Failure)
        else (found.frame.index, found.frame.count, pytest.approx(classifier.predict(found.frame.pixels).probability))
        for source in sources
        for found in preparing.decode_or_fail(source, classifier.reading)
    ]
    results = classifier.predict_batches(sources, batch_size=batch_size, workers=workers)
    assert expected == [
        (result.index, result.frames, str(result.error) if isinstance(result, Failure) else result.probability)
        for result in results
    ]


def test_no_input_gives_no_result(classifier):
    assert list(classifier.predict_batches([])) == []


def test_four_threads_share_one_classifier(classifier, picture):
    rotated = [picture.rotate(10 * turn) for turn in range(40)]
    alone = [classifier.predict(picture).probability for picture in rotated]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: classifier.predict(image).probability, rotated))
    assert together == alone


def _answer_in_child(bundle: Path, picture: bytes, answers: multiprocessing.Queue) -> None:
    with Classifier.load(bundle) as classifier:
        answers.put(classifier.predict(picture).probability)


def test_forked_worker_opens_its_own(tiny_bundle, classifier, picture):
    """A web server forks after import: a child must be able to load and run, whatever its parent did."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system does not fork")
    data = io.BytesIO()
    picture.save(data, "PNG")
    here = classifier.predict(data.getvalue()).probability
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_answer_in_child, args=(tiny_bundle, data.getvalue(), answers))
    child.start()
    assert answers.get(timeout=60) == here
    child.join(timeout=60)
    assert child.exitcode == 0


def test_fake_engine_answers_from_the_mean_grey_level(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    fake = Classifier(bundle, bundle.manifest.artifacts[0], FakeEngine((128, 128, 3)))
    prediction = fake.predict(np.full((40, 40), 51, np.uint8))
    assert prediction.probabilities == pytest.approx({"no": 0.8, "yes": 0.2})
    assert prediction.provider == "FakeExecutionProvider"


@pytest.mark.parametrize("engine", [FakeEngine((64, 64, 3)), FakeEngine((128, 128, 3), classes=3)])
def test_artifact_that_contradicts_the_manifest_is_refused(tiny_bundle, engine):
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(EngineError, match="manifest"):
        Classifier(bundle, bundle.manifest.artifacts[0], engine)


def test_unreadable_scan_raises_input_error(classifier):
    with pytest.raises(InputError, match="no such file"):
        classifier.predict("missing.png")


@pytest.mark.parametrize("source", [None, 7, io.BytesIO(b"x"), ["a.png"]], ids=lambda value: type(value).__name__)
def test_the_message_names_an_unsupported_type_of_source(classifier, picture, source):
    words = (
        "a path, the bytes of a file, a Pillow image, a numpy array or a pydicom.Dataset. "
        f"Received: {type(source).__name__}"
    )
    with pytest.raises(InputError, match=words):
        classifier.predict(source)
    assert [type(result) for result in classifier.predict_batches([source, picture])] == [Failure, Prediction]


def test_a_scan_of_several_frames_is_refused_before_the_model_runs(classifier, write_slices, monkeypatch):
    monkeypatch.setattr(classifier.engine, "run_outputs", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(InputError, match=r"holds 3 frames, one is needed. Use predict_frames"):
        classifier.predict(write_slices("v.slices", 10, 20, 30), explain=True)


@pytest.mark.parametrize("sources", ["in", b"in", Path("in")], ids=lambda value: type(value).__name__)
def test_predict_batches_refuses_a_single_scan(classifier, sources):
    with pytest.raises(UsageError, match=r"takes many scans. Received: .*in"):
        classifier.predict_batches(sources)


@pytest.mark.parametrize("shape", [(200, 190), (200, 190, 1), (200, 190, 3), (200, 190, 4)])
def test_predict_batches_refuses_a_single_picture(classifier, shape):
    pixels = np.zeros(shape, np.uint8)
    with pytest.raises(UsageError, match=re.escape(f"takes many scans. Received: array of shape {shape}. Pass [scan]")):
        classifier.predict_batches(pixels)
    with pytest.raises(UsageError, match=r"takes many scans. Received: <PIL.Image.Image"):
        classifier.predict_batches(Image.fromarray(pixels.squeeze()))


def test_an_array_may_hold_many_pictures(classifier):
    for shape in ((3, 200, 190), (3, 200, 190, 3)):
        results = list(classifier.predict_batches(np.zeros(shape, np.uint8)))
        assert [type(result) for result in results] == [Prediction] * 3


@pytest.mark.parametrize("options", [{"batch_size": -1}, {"batch_size": 0}, {"workers": -1}])
def test_batch_size_and_workers_are_checked_at_the_call(classifier, picture, options):
    with pytest.raises(UsageError, match="at least 1"):
        classifier.predict_batches([picture], **options)


@pytest.mark.parametrize("given", [0, 3, 8, 20])
@pytest.mark.parametrize("max_wait", [None, 0.05])
def test_scans_before_a_source_that_fails_are_answered(classifier, picture, given, max_wait):
    def sources():
        yield from [picture] * given
        raise RuntimeError("the share is gone")

    answers = []
    with pytest.raises(RuntimeError, match="the share is gone"):
        for answer in classifier.predict_batches(sources(), batch_size=8, max_wait=max_wait):
            answers.append(answer)
    assert len(answers) == given


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_source_that_ends_the_program_does_not_hang(classifier, picture, error):
    def sources():
        yield picture
        raise error

    results = classifier.predict_batches(sources(), max_wait=0.05)
    assert isinstance(next(results), Prediction)
    with pytest.raises(error):
        next(results)


def test_a_closed_classifier_raises(tiny_bundle, picture):
    classifier = Classifier.load(tiny_bundle)
    classifier.close()
    with pytest.raises(UsageError, match="this classifier is closed"):
        classifier.predict(picture)


def test_a_classifier_closed_during_a_prediction_raises(tiny_bundle, picture, monkeypatch):
    classifier = Classifier.load(tiny_bundle)
    run = classifier.engine.run_outputs

    def close_and_run(batch, names):
        classifier.close()
        return run(batch, names)

    monkeypatch.setattr(classifier.engine, "run_outputs", close_and_run)
    with pytest.raises(UsageError, match="this classifier is closed"):
        classifier.predict(picture)


class _NoNumber(FakeEngine):
    def run_outputs(self, batch, names):
        return {"probabilities": np.full((len(batch), 2), np.nan, np.float32)}


def test_probabilities_that_are_not_finite_are_an_error(tiny_bundle, picture):
    bundle = Bundle.open(tiny_bundle)
    broken = Classifier(bundle, bundle.manifest.artifacts[0], _NoNumber((128, 128, 3)))
    with pytest.raises(EngineError, match=r"not finite.*verify"):
        broken.predict(picture)


def test_missing_bundle_names_the_embedded_models():
    with pytest.raises(BundleError, match="Embedded models"):
        Classifier.load("no-such-bundle")


def test_threads_of_the_decoder_end_with_the_call(classifier, picture):
    list(classifier.predict_batches([picture] * 20))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
