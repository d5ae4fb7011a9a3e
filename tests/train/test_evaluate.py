"""Test evaluation: metrics against scikit-learn, intervals, the choice of images, tables and page."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import logit
from scipy.stats import norm
from scipy.stats import t as student_t

from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import Bundle, embedded_models
from mri_edge.bundles.split import SPLIT, Split, SplitImage
from mri_edge.cli import run
from mri_edge.errors import DataError, EngineUnavailable, UsageError, printable
from mri_edge.inference.selection import RunOptions
from mri_edge.storage.atomic import sha256_of

metrics_of_sklearn = pytest.importorskip("sklearn.metrics", reason="needs the extra 'train'")
pytest.importorskip("matplotlib", reason="needs the extra 'train'")

from mri_edge.train.evaluation.evaluate import evaluate
from mri_edge.train.evaluation.intervals import auc
from mri_edge.train.evaluation.metrics import bins_of, measure, reliability, wilson_metric


def two_columns(score: np.ndarray) -> np.ndarray:
    return np.stack([1 - score, score], axis=1).astype(np.float32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Create eight pictures of noise in each of ``no`` and ``yes``."""
    rng = np.random.default_rng(9)
    for name in ("no", "yes"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for index in range(8):
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "data"


def record_split(bundle: Path, data: Path, test: set[str], role: str = "train") -> None:
    """Write a split record into ``bundle``: ``test`` files test, the other files of ``data`` have ``role``."""
    images = tuple(
        SplitImage(
            path.relative_to(data).as_posix(),
            sha256_of(path),
            int(path.parent.name == "yes"),
            "test" if path.relative_to(data).as_posix() in test else role,
        )
        for path in sorted(data.rglob("*.png"))
    )
    with rewrite_bundle(Bundle.open(bundle)) as writer:
        writer.add_document(SPLIT, Split(images).to_json())


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, 200)
    score = np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0, 1).round(2)  # rounded: ties happen
    found = measure(truth, two_columns(score), 1, 0.45)
    score = two_columns(score)[:, 1].astype(float)
    called = (score >= np.float32(0.45)).astype(int)
    expected = {
        "accuracy": metrics_of_sklearn.accuracy_score(truth, called),
        "auc": metrics_of_sklearn.roc_auc_score(truth, score),
        "sensitivity": metrics_of_sklearn.recall_score(truth, called),
        "specificity": metrics_of_sklearn.recall_score(truth, called, pos_label=0),
        "precision": metrics_of_sklearn.precision_score(truth, called),
        "f1": metrics_of_sklearn.f1_score(truth, called),
        "brier": metrics_of_sklearn.brier_score_loss(truth, score),
    }
    assert set(found) == {*expected, "calibration_error"}
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-9), name  # the same sums in another order
    for metric in found.values():
        assert metric.low <= metric.value <= metric.high
        assert metric.low < metric.high


def test_calibration_error_computed_by_hand():
    # Twenty images, two per bin. The mean probability of a bin is 0.1 below its fraction of positives: 0, 1/2 or 1.
    truth = np.array([0, 1] * 10)
    score = np.linspace(0.05, 0.95, 10).repeat(2)
    expected = np.abs(np.linspace(0.05, 0.95, 10) - 0.5).mean()
    found = measure(truth, two_columns(score), 1)["calibration_error"]
    assert found.value == pytest.approx(expected, abs=1e-7)  # probabilities are float32
    assert [point["share"] for point in reliability(truth == 1, score)] == [0.5] * 10


def test_bins_have_equal_counts_and_divide_no_tie():
    assert np.bincount(bins_of(np.random.default_rng(0).random(1000))).tolist() == [100] * 10
    tied = bins_of(np.array([0.2] * 7 + [0.9] * 13))
    assert len(set(tied[:7])) == len(set(tied[7:])) == 1
    assert tied[0] < tied[-1]


def test_wilson_interval_equals_published_values():
    # R. G. Newcombe, Statistics in Medicine 17, 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (hits, total), (low, high) in published.items():
        found = wilson_metric(hits, total)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)  # printed with four digits


def test_auc_interval_equals_delong():
    """Compare with the definition of E. R. DeLong et al., Biometrics 44, 1988, pair by pair."""
    rng = np.random.default_rng(3)
    is_positive = np.arange(90) % 3 == 0
    score = rng.normal(1.5 * is_positive).round(1)  # rounded: ties happen
    pairs = np.subtract.outer(score[is_positive], score[~is_positive])
    right = (pairs > 0) + (pairs == 0) / 2
    spread = np.sqrt(right.mean(1).var(ddof=1) / 30 + right.mean(0).var(ddof=1) / 60)
    found = auc(is_positive, score)
    assert found.value == pytest.approx(right.mean())
    odds = [np.log(value / (1 - value)) for value in (found.low, found.value, found.high)]
    half = 1.959964 * spread / (found.value * (1 - found.value))
    assert np.diff(odds) == pytest.approx([half, half], rel=1e-5)


def test_images_of_a_group_count_as_one():
    """Twenty copies of each image add no evidence (N. A. Obuchowski, 1997)."""
    rng = np.random.default_rng(4)
    is_positive = np.arange(60) % 2 == 0
    score = rng.normal(1.2 * is_positive)
    once, copied = auc(is_positive, score), auc(is_positive.repeat(20), score.repeat(20), np.arange(60).repeat(20))
    wider = student_t.ppf(0.975, 29) / norm.ppf(0.975)  # 30 groups of each class
    for bound in ("low", "high"):
        distance = logit(getattr(once, bound)) - logit(once.value)
        assert logit(getattr(copied, bound)) - logit(copied.value) == pytest.approx(wider * distance, rel=1e-9)
    taken_as_many = auc(is_positive.repeat(20), score.repeat(20))
    assert taken_as_many.high - taken_as_many.low < 0.3 * (once.high - once.low)


@pytest.mark.parametrize("true_area", [0.9, 0.98])
@pytest.mark.parametrize(("positives", "negatives"), [(10, 10), (31, 20), (100, 30)])
def test_auc_interval_covers_the_truth(true_area, positives, negatives):
    rng = np.random.default_rng(5)
    is_positive = np.arange(positives + negatives) < positives
    shift = np.sqrt(2) * norm.ppf(true_area)
    found = [auc(is_positive, rng.normal(shift * is_positive)) for _ in range(300)]
    assert (
        np.mean([metric.low <= true_area <= metric.high for metric in found]) >= 0.9
    )  # a percentile bootstrap: 0.74 to 0.92


def test_perfectly_separated_classes_have_an_interval():
    for ones in (1, 2, 5, 20):
        is_positive = np.arange(2 * ones) < ones
        found = measure(is_positive.astype(int), two_columns(is_positive.astype(float)), 1)
        for name in ("auc", "f1"):
            assert found[name].low < 1 == found[name].value == found[name].high
    # R. G. Newcombe's method 5 with the variance of a proportion: (1 - a)^2 = z^2 a (1 - a).
    assert auc(np.array([True, False]), np.array([1.0, 0.0])).low == pytest.approx(1 / (1 + 1.959964**2), rel=1e-5)
    nothing = auc(np.array([False, True]), np.array([1.0, 0.0]))
    assert (nothing.value, nothing.low) == (0, 0)
    assert nothing.high == pytest.approx(1 - 1 / (1 + 1.959964**2), rel=1e-5)


def test_interval_of_the_calibration_error_includes_zero_for_a_calibrated_model():
    """Noise makes the value positive, so the interval must extend down to the true value, 0."""
    reached = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        score = rng.random(150)
        found = measure((rng.random(150) < score).astype(int), two_columns(score), 1)["calibration_error"]
        assert found.value > 0
        reached += found.low == 0
    assert reached >= 17  # of 20 intervals at 95%, 17 or more hold the truth in 98% of such series


def test_undefined_metrics_are_omitted():
    score = np.array([0.2, 0.3, 0.1, 0.4, 0.2, 0.3, 0.1, 0.4, 0.2, 0.3])
    found = measure(np.zeros(10, int), two_columns(score), 1)
    assert set(found) == {"accuracy", "specificity", "brier", "calibration_error"}


def test_swapped_folders_give_the_mirrored_result(tiny_bundle, data):
    bundle = Bundle.open(tiny_bundle)
    before = evaluate(bundle, data)
    (data / "no").rename(data / "held")
    (data / "yes").rename(data / "no")
    (data / "held").rename(data / "yes")
    after = evaluate(bundle, data)
    for name in ("accuracy", "auc"):
        assert after["metrics"][name]["value"] == pytest.approx(1 - before["metrics"][name]["value"])
    assert after["metrics"]["sensitivity"]["value"] == pytest.approx(1 - before["metrics"]["specificity"]["value"])
    assert after["confusion_matrix"] == before["confusion_matrix"][::-1]
    assert after["mistakes"] == 16 - before["mistakes"]


def test_threshold_of_the_manifest_is_used(tiny_bundle, data):
    bundle = Bundle.open(tiny_bundle)
    scores = sorted(prediction["probabilities"][1] for prediction in evaluate(bundle, data)["predictions"])
    strict = replace(bundle, manifest=replace(bundle.manifest, threshold=float(np.mean(scores[-4:-2]))))
    assert sum(prediction["called"] for prediction in evaluate(strict, data)["predictions"]) == 3


def test_only_test_images_of_the_training_folder_are_scored(tiny_bundle, data):
    test = {"no/0.png", "no/1.png", "yes/3.png"}
    record_split(tiny_bundle, data, test)
    record = evaluate(Bundle.open(tiny_bundle), data)
    assert {prediction["file"] for prediction in record["predictions"]} == test
    assert record["data"]["left_out"] == {"train": 13}
    assert record["warnings"] == []


def test_test_images_are_recognized_under_other_names(tiny_bundle, data):
    record_split(tiny_bundle, data, {"no/0.png", "yes/3.png"})
    (data / "no" / "0.png").rename(data / "no" / "renamed.png")
    record = evaluate(Bundle.open(tiny_bundle), data)
    assert {prediction["file"] for prediction in record["predictions"]} == {"no/renamed.png", "yes/3.png"}


def test_test_image_that_was_trained_on_is_reported(tiny_bundle, data):
    shutil.copy(data / "no" / "0.png", data / "no" / "copy.png")
    record_split(tiny_bundle, data, {"no/0.png", "yes/3.png"})
    record = evaluate(Bundle.open(tiny_bundle), data)
    assert {prediction["file"] for prediction in record["predictions"]} == {"no/0.png", "yes/3.png"}
    assert record["warnings"] == ["1 of the test images are byte for byte among the training images as well."]


def test_training_images_among_others_are_not_scored(tiny_bundle, data, tmp_path):
    used = tmp_path / "used"
    for file in ("no/2.png", "yes/5.png"):
        (used / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / file, used / file)
    record_split(tiny_bundle, used, set())
    record = evaluate(Bundle.open(tiny_bundle), data)
    files = {prediction["file"] for prediction in record["predictions"]}
    assert len(files) == 14
    assert not files & {"no/2.png", "yes/5.png"}
    assert record["data"]["left_out"] == {"train": 2}


def test_training_images_are_rejected_without_role_all(tiny_bundle, data):
    record_split(tiny_bundle, data, set())
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(DataError, match="train 16"):
        evaluate(bundle, data)
    with pytest.raises(DataError, match="no test images"):
        evaluate(bundle, data, role="test")
    record = evaluate(bundle, data, role="all")
    assert record["data"]["images"] == 16
    assert "16 OF THESE 16 IMAGES WERE IN TRAINING" in record["warnings"][0]


def test_folders_must_match_labels_of_the_model(tiny_bundle, data):
    (data / "yes").rename(data / "perhaps")
    with pytest.raises(DataError, match="'perhaps' matches no label of the model"):
        evaluate(Bundle.open(tiny_bundle), data)


def test_single_class_can_be_scored(tiny_bundle, data):
    shutil.rmtree(data / "no")
    record = evaluate(Bundle.open(tiny_bundle), data)
    assert record["roc"] is None
    assert set(record["metrics"]) & {"auc", "specificity"} == set()
    assert record["data"]["by_label"] == [0, 8]


def test_unreadable_scan_is_reported_and_the_others_are_scored(tiny_bundle, data, tmp_path, capfd):
    (data / "no" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    out = tmp_path / "report"
    assert run(["evaluate", str(tiny_bundle), "--data", str(data), "--json", "--out", str(out)]) == 1
    printed, said = capfd.readouterr()
    record = json.loads(printed)
    assert record["data"]["images"] == 16
    assert [failure["file"] for failure in record["unreadable"]] == ["no/broken.png"]
    assert "broken.png: damaged picture" in said
    assert "broken.png" in (out / "evaluation.html").read_text()


def test_scan_of_several_frames_is_reported_and_the_others_are_scored(tiny_bundle, data):
    """A label is about a file, so it says nothing about each of its slices."""
    nibabel = pytest.importorskip("nibabel", reason="needs the extra 'nifti'")
    volume = np.random.default_rng(0).integers(0, 255, (40, 40, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1, 5, 1])), data / "no" / "3-volume.nii")
    record = evaluate(Bundle.open(tiny_bundle), data)
    [failure] = record["unreadable"]
    assert failure["file"] == "no/3-volume.nii"
    assert "holds 4 frames, one is needed" in failure["error"]
    (data / "no" / "3-volume.nii").unlink()
    assert evaluate(Bundle.open(tiny_bundle), data)["predictions"] == record["predictions"]


def test_groups_of_scans_widen_the_intervals(tiny_bundle, data, tmp_path, capfd):
    rows = "".join(
        f"{path.parent.name}/{path.name},{path.parent.name}{index // 4}\n"
        for index, path in enumerate(sorted(data.rglob("*.png")))
    )
    (tmp_path / "patients.csv").write_text("file,group\n" + rows)
    arguments = ["evaluate", str(tiny_bundle), "--data", str(data), "--json"]
    assert run(arguments) == 0
    alone = json.loads(capfd.readouterr().out)
    assert run([*arguments, "--groups", str(tmp_path / "patients.csv")]) == 0
    printed, said = capfd.readouterr()
    grouped = json.loads(printed)
    text = "patients in patients.csv, joined with near-duplicates"
    assert (alone["data"]["grouping"], grouped["data"]["grouping"]) == (None, text)
    assert f"groups: {text}; 16 images in 4 groups" in said
    assert grouped["predictions"] == alone["predictions"]
    metrics = measure(
        np.repeat([0, 1], 8),
        np.array([prediction["probabilities"] for prediction in grouped["predictions"]], np.float32),
        1,
        grouped["threshold"],
        np.arange(16) // 4,
    )
    assert grouped["metrics"] == {name: asdict(metric) for name, metric in metrics.items()}
    assert run([*arguments, "--heatmaps", "--groups", "blocks"]) == 2
    assert "--heatmaps groups scans itself" in capfd.readouterr().err


def test_recorded_groups_that_do_not_fit_the_test_images_are_not_used(tiny_bundle, data):
    record_split(tiny_bundle, data, {"no/0.png", "yes/3.png"})
    for groups in ([4, 9], [4], [4, "a"], [4, [9]], [4, 10**30], [4, None]):
        test = [{"group": group} for group in groups]
        with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
            writer.add_document("metrics.json", json.dumps({"test": test}))
        grouping = evaluate(Bundle.open(tiny_bundle), data)["data"]["grouping"]
        assert grouping == ("as in training" if groups == [4, 9] else None)


def test_record_survives_json_and_the_page_is_self_contained(tiny_bundle, data, tmp_path, capfd):
    out = tmp_path / "report"
    assert run(["evaluate", str(tiny_bundle), "--data", str(data), "--json", "--out", str(out)]) == 0
    record = json.loads(capfd.readouterr().out)
    assert json.loads((out / "evaluation.json").read_text()) == record
    page = (out / "evaluation.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", page)
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert "http" not in re.sub(r"base64,[\w+/=]*", "", page)
    assert "<script" not in page
    assert page.count('<svg role="img" aria-label="') == page.count("<svg") == 3
    for mistake in record["worst"]:
        assert mistake["file"] in page
    auc = record["metrics"]["auc"]
    assert f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})" in page
    for fact in ("Research use only", str(data), record["creation"]["created"], "<dt>Command</dt>", "numpy"):
        assert fact in page


def test_page_says_which_point_of_the_curve_the_answers_are(tiny_bundle, data):
    from mri_edge.train.reports.evaluation_report import evaluation_page

    bundle = Bundle.open(tiny_bundle)
    texts = ["its answers", "at the threshold"]
    for threshold, (shown, other) in ((None, texts), (0.5, texts[::-1])):
        chosen = replace(bundle, manifest=replace(bundle.manifest, threshold=threshold))
        page = evaluation_page(evaluate(chosen, data))
        assert f"{shown}, 95% intervals" in page
        assert f"{other}, 95% intervals" not in page


def test_page_shows_mistakes_as_small_pictures(tiny_bundle, data, tmp_path):
    """At most 20 pictures of at most 160 pixels; without the scans, the page lists the mistakes without pictures."""
    from mri_edge.train.reports.evaluation_report import evaluation_page

    for path in sorted(data.glob("*/*.png")):
        with Image.open(path) as picture:
            larger = picture.resize((400, 300))
        for copy in range(4):
            larger.putpixel((copy, 0), (255, 0, 0))
            larger.save(path.with_name(f"{path.stem}-{copy}.png"))
    record = evaluate(Bundle.open(tiny_bundle), data)
    assert record["mistakes"] > 20
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', evaluation_page(record))
    assert len(pictures) == 20
    sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]
    assert max(max(size) for size in sizes) == 160
    shutil.rmtree(data)
    page = evaluation_page(record)
    assert "data:image/jpeg" not in page
    assert record["worst"][0]["file"] in page


def test_page_of_four_labels_without_a_positive_one(tiny_bundle, data):
    """The page names every label: in the confusion matrix, in one ROC curve each, and in the table by label."""
    from mri_edge.train.reports.evaluation_report import evaluation_page, print_evaluation

    record = evaluate(Bundle.open(tiny_bundle), data)
    labels = ["glioma", "meningioma", "<none>", "pituitary"]
    rng = np.random.default_rng(0)
    for index, prediction in enumerate(record["predictions"]):
        row = rng.dirichlet(np.ones(4))
        prediction |= {"label": index % 4, "called": int(row.argmax()), "probabilities": row.tolist()}
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "images": 16, "method": "by hand"}
    record |= {
        "labels": labels,
        "positive": None,
        "threshold": None,
        "metrics": dict.fromkeys(("accuracy", "macro_auc", "macro_f1", "brier"), figure),
        "by_label": {label: dict.fromkeys(("sensitivity", "precision", "f1", "auc"), figure) for label in labels},
        "confusion_matrix": np.eye(4, dtype=int).tolist(),
        "roc": None,
        "roc_by_label": dict.fromkeys(labels, record["roc"]),
        "folders": [],
        "worst": [prediction for prediction in record["predictions"] if prediction["called"] != prediction["label"]],
    }
    record["data"]["by_label"] = [4] * 4
    page = evaluation_page(record)
    assert "<none>" not in page  # labels are escaped
    for label in ("glioma", "meningioma", "&lt;none&gt;", "pituitary"):
        assert f"{label}: AUC 0.500 (0.400 to 0.600)" in page
        assert f"{label} called {label}: 1" in page
    assert "positive label: none; answer: the likeliest label" in page
    assert "AUC, mean of the labels" in page
    assert "probability of the called label" in page
    print_evaluation(record)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [2, 4, 30])
def test_long_labels_leave_the_plots_readable(count):
    """Plots keep their size and tell the labels apart; the whole names are in the texts for screen readers."""
    from mri_edge.train.reports.plots import RocCurve, confusion_plot, roc_plot

    def draw(names: list[str]) -> list[tuple[float, set[str]]]:
        points = {"false_positive_rate": [0, 1], "true_positive_rate": [0, 1]}
        plots = confusion_plot([("", np.eye(count, dtype=int))], names), roc_plot([RocCurve(n, points) for n in names])
        assert all(html.escape(name) in plot.svg for name in names for plot in plots)
        return [
            (
                float(re.search(r'width="([\d.]+)pt"', plot.svg)[1]),
                set(re.findall(r"<text[^>]*>([^<]*)</text>", plot.svg)),
            )
            for plot in plots
        ]

    usual = draw([f"a label of 20 chars {index:02}" for index in range(count)])
    long = draw(["scans of the same hospital " * 8 + f"{index:02}" for index in range(count)])
    for (usual_width, _), (width, texts) in zip(usual, long, strict=True):
        assert width < 1.3 * usual_width
        assert len([text for text in texts if text.startswith("scans of")]) == count


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "label", ["腫瘍", "опухоль", "गांठ", "ورم", "גידול", "\N{RIGHT-TO-LEFT OVERRIDE}ruomut", "a\nb"]
)
def test_labels_of_any_script_are_drawn_without_warnings(label):
    from mri_edge.train.reports.plots import RocCurve, confusion_plot, reliability_plot, roc_plot

    points = {"false_positive_rate": [0, 1], "true_positive_rate": [0, 1]}
    bins = [{"probability": 0.5, "share": 0.5, "low": 0.4, "high": 0.6, "images": 4}]
    for plot in (
        confusion_plot([("", [[1, 2], [3, 4]])], ["no", label]),
        roc_plot([RocCurve(label, points)]),
        reliability_plot(bins, np.array([0.5]), f"with label {label}", f"probability of {label}"),
    ):
        assert printable(label) in plot.svg
        assert (label in plot.svg) == label.isprintable()


HOSTILE = [
    "<img src=x onerror=alert(1)>.png", 'a"onmouseover="alert(1).png', "it's&amp;.png", "two\nlines.png",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe.png", "\N{RIGHT-TO-LEFT ISOLATE}x.png", "{{7*7}}{% raw %}.png",
    "\x1b[31mred.png", "\x9b31m.png", "y" * 200 + ".png", "\N{CJK UNIFIED IDEOGRAPH-816B}.png",
]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="the file system has no such names")
@pytest.mark.parametrize("name", HOSTILE)
def test_file_names_change_neither_the_page_nor_the_terminal(name, tiny_bundle, data, tmp_path, capfd):
    """No markup, no further line, no color, no reversed text; and the name is still there to be found."""
    record = evaluate(Bundle.open(tiny_bundle), data)
    wrong = data / record["worst"][0]["file"]
    wrong.rename(wrong.with_name(name))
    capfd.readouterr()
    assert run(["evaluate", str(tiny_bundle), "--data", str(data), "--out", str(tmp_path / "report")]) == 0
    printed = capfd.readouterr().out
    page = (tmp_path / "report" / "evaluation.html").read_text()
    assert all(line.isprintable() for text in (page, printed) for line in text.split("\n"))
    shown = printable(f"{wrong.parent.name}/{name}")
    assert [line for line in printed.splitlines() if line.startswith(shown)]
    assert shown in html.unescape(page)
    assert not re.search(r"<(img|script)[^>]*(onerror|onmouseover|alert)", page)
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text())["mistakes"] == record["mistakes"]


def test_worst_mistakes_come_first(tiny_bundle, data):
    record = evaluate(Bundle.open(tiny_bundle), data)
    wrong = [prediction for prediction in record["predictions"] if prediction["called"] != prediction["label"]]
    assert record["mistakes"] == len(wrong) > 1
    given = [mistake["probabilities"][mistake["label"]] for mistake in record["worst"]]
    assert given == sorted(mistake["probabilities"][mistake["label"]] for mistake in wrong)[: len(given)]


def test_tables_list_every_metric(tiny_bundle, data, capfd):
    for folder in data.iterdir():
        (folder / "0.png").rename(folder / "a[old].png")  # Rich would take that for a style
    assert run(["evaluate", str(tiny_bundle), "--data", str(data)]) == 0
    printed, said = capfd.readouterr()
    for word in ("accuracy", "AUC", "Brier score", "calibration error", "By folder", "Confusion matrix"):
        assert word in printed
    assert "a[old].png" in printed
    assert "no split record" in said


def test_missing_packages_are_reported_in_one_line(tiny_bundle, data, monkeypatch, capfd):
    from mri_edge.train.cli import evaluate as evaluate_command

    monkeypatch.setattr(evaluate_command, "find_spec", lambda name: None if name == "matplotlib" else object())
    assert run(["evaluate", str(tiny_bundle), "--data", str(data)]) == 2
    assert capfd.readouterr().err == (
        "mri-edge: error: evaluation needs packages that are not installed: matplotlib. "
        "pip install 'mri-edge[evaluate]'\n"
    )


def test_out_that_is_a_file_is_reported_before_scoring(tiny_bundle, data, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert run(["evaluate", str(tiny_bundle), "--data", str(data), "--out", str(tmp_path / "file")]) == 6
    assert "file: cannot make the folder" in capfd.readouterr().err


def test_page_that_cannot_be_written_leaves_the_older_record(tiny_bundle, data, tmp_path, capfd):
    (tmp_path / "report" / "evaluation.html").mkdir(parents=True)
    (tmp_path / "report" / "evaluation.json").write_text("older")
    assert run(["evaluate", str(tiny_bundle), "--data", str(data), "--out", str(tmp_path / "report")]) == 6
    assert "evaluation.html: cannot write" in capfd.readouterr().err
    assert (tmp_path / "report" / "evaluation.json").read_text() == "older"


def test_keras_model_is_scored_without_another_engine(tiny_bundle, data):
    keras = pytest.importorskip("keras", reason="needs the extra 'train'")
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((128, 128, 3)),
            keras.layers.AveragePooling2D(16),
            keras.layers.Flatten(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        model.save(writer.path("model.keras"))
        onnx = writer.manifest.artifacts[0]
        writer.add_artifact(replace(onnx, file="model.keras", format="keras"))
    bundle = Bundle.open(tiny_bundle)
    record = evaluate(bundle, data, run=RunOptions(artifact="model.keras"))
    assert (record["engine"], record["artefact"]) == ("keras", "model.keras")
    pixels = bundle.manifest.preprocessing.resize_picture(
        np.asarray(Image.open(data / record["predictions"][0]["file"]))
    )
    expected = model.predict_on_batch(bundle.manifest.preprocessing.normalize(pixels[None]))[0]
    # Batches of one and of eight images sum in another order.
    np.testing.assert_allclose(record["predictions"][0]["probabilities"], expected, atol=1e-5)
    with pytest.raises(UsageError, match="chooses its device"):
        evaluate(bundle, data, run=RunOptions(artifact="model.keras", provider="cuda"))
    with pytest.raises((UsageError, EngineUnavailable), match="litert"):
        evaluate(bundle, data, run=RunOptions(artifact="model.keras", engine="litert"))


def test_scored_keras_model_is_the_one_that_was_hashed(tiny_bundle, data, monkeypatch):
    """A file that replaces the model after it was hashed is not opened."""
    keras = pytest.importorskip("keras", reason="needs the extra 'train'")
    keras.utils.set_random_seed(1)
    layers = [keras.Input((128, 128, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, "softmax")]
    model = keras.Sequential(layers)
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        model.save(writer.path("model.keras"))
        writer.add_artifact(replace(writer.manifest.artifacts[0], file="model.keras", format="keras"))
    bundle = Bundle.open(tiny_bundle)
    wanted = evaluate(bundle, data, run=RunOptions(artifact="model.keras"))["predictions"]
    read = Bundle.read

    def read_and_exchange(self: Bundle, entry):
        content = read(self, entry)
        if entry.file == "model.keras":
            (tiny_bundle / entry.file).write_bytes(b"another file")
        return content

    monkeypatch.setattr(Bundle, "read", read_and_exchange)
    assert evaluate(bundle, data, run=RunOptions(artifact="model.keras"))["predictions"] == wanted
    assert (tiny_bundle / "model.keras").read_bytes() == b"another file"


def test_packed_bundle_is_scored_like_its_folder(tiny_bundle, data, tmp_path):
    record_split(tiny_bundle, data, {"no/0.png", "yes/3.png"})
    slim, packed = str(tmp_path / "slim"), str(tmp_path / "slim.mribundle")
    assert run(["bundle", "slim", str(tiny_bundle), "--artifact", "model.onnx", "--out", slim]) == 0
    assert run(["bundle", "pack", slim, "--out", packed]) == 0
    assert evaluate(Bundle.open(packed), data)["predictions"] == evaluate(Bundle.open(slim), data)["predictions"]


def test_slim_bundle_recognizes_its_training_images(tiny_bundle, data, tmp_path, capfd):
    record_split(tiny_bundle, data, {"no/0.png", "yes/3.png"})
    slim = tmp_path / "slim"
    assert run(["bundle", "slim", str(tiny_bundle), "--artifact", "model.onnx", "--out", str(slim)]) == 0
    assert not (slim / SPLIT).exists()
    record = evaluate(Bundle.open(slim), data)
    assert {prediction["file"] for prediction in record["predictions"]} == {"no/0.png", "yes/3.png"}
    assert record["data"]["left_out"] == {"train": 14}


@pytest.mark.data
@pytest.mark.parametrize("name", embedded_models())
def test_embedded_model_reproduces_the_metrics_of_its_manifest(scans, name):
    bundle = Bundle.open(name)
    record = evaluate(bundle, scans)
    assert record["data"]["images"] == bundle.manifest.training.test_images
    assert record["data"]["left_out"]["train"]
    # The metrics are those of the float model. int8 may flip the labels that parity found, and one more on another CPU.
    parity = bundle.artifact(record["artefact"]).parity
    flips = (parity.flips if parity else 0) + 1
    for figure in ("accuracy", "sensitivity", "specificity"):
        written, found = bundle.manifest.metrics[figure], record["metrics"][figure]
        assert found["images"] == written.images
        assert abs(found["value"] - written.value) * written.images <= flips + 1e-9, figure
