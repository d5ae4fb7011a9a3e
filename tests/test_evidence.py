"""docs/evidence.md and the summary in README are what `make evidence` writes, and its rows are those of the records."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs the extra 'train'")
sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/ is not installed

from mri_edge.authoring.intervals import with_interval
from mri_edge.train.evaluation.calibration import choose_threshold
from mri_edge.train.evaluation.crossval_figures import figures_from
from scripts.make_evidence import BEGIN, CHECKOUT, END, PAGE, README, build, draw_thresholds

RECIPE = "lite"


def record(
    *,
    protocol: str = "folds",
    grouping: str = "near-duplicates",
    models: tuple[str, ...] = ("model",),
    labels: tuple[str, ...] = ("no tumour", "tumour"),
    images: int = 160,
    seed: int = 0,
    trained_with: int = 0,
) -> dict[str, Any]:
    """Return a cross-validation record of random answers, two images to a group, from two sources."""
    rng = np.random.default_rng(seed)
    truth = np.arange(images) // 2 % len(labels)
    answers = {}
    for model in models:
        logits = rng.normal(size=(images, len(labels)))
        logits[np.arange(images), truth] += 1.5
        answers[model] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    source = np.where(np.arange(images) < images // 2, "first", "second")
    fold = np.where(source == "first", 1, 2) if protocol == "sources" else 1 + np.arange(images) // 2 // len(labels) % 2
    found: dict[str, Any] = {
        "schema_version": 2,
        "recipe": "small" if "teacher" in models else RECIPE,
        "schedule": {"epochs": 20} if "teacher" in models else {"steps": 1240},
        "teacher": {"recipe": RECIPE, "seed": 0, "schedule": {"steps": 620}} if "teacher" in models else None,
        "seed": trained_with,
        "protocol": protocol,
        "folds": 2 if protocol == "folds" else None,
        "folds_scored": [1, 2],
        "grouping": grouping,
        "labels": list(labels),
        "positive": 1 if len(labels) == 2 else None,
        "patients": None,
        "stress": {},
        "creation": {"command": "mri-edge train PATH --cv 2"},
        "images": {
            "file": [f"{source[index]}/{labels[truth[index]]}/{index}.jpg" for index in range(images)],
            "sha256": ["0" * 16] * images,
            "label": truth.tolist(),
            "group": (np.arange(images) // 2).tolist(),
            "source": source.tolist(),
            "fold": fold.tolist(),
            "selectable": [1] * images,
            "probabilities": {model: rows.tolist() for model, rows in answers.items()},
            "called": {model: rows.argmax(axis=1).tolist() for model, rows in answers.items()},
        },
    }
    return found | figures_from(found)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with a README and the embedded models, without evidence."""
    (tmp_path / README).write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    for metrics in (CHECKOUT / "runtime" / "models").glob("*/metrics.json"):
        folder = tmp_path / metrics.parent.relative_to(CHECKOUT)
        folder.mkdir(parents=True)
        for name in ("manifest.json", "metrics.json", "parity.json"):
            shutil.copy(metrics.parent / name, folder)
    return tmp_path


def add(root: Path, name: str, content: dict[str, Any], folder: str = "crossval") -> None:
    path = root / "docs" / "evidence" / folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_committed_page_is_what_the_script_writes() -> None:
    for path, text in build().items():
        assert (CHECKOUT / path).read_text(encoding="utf-8") == text, f"{path}: run `make evidence`"


def test_missing_records_make_no_rows(root: Path) -> None:
    page = build(root)[PAGE]
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert headings == ["# Evidence", "## Embedded models", "## What is not measured"]
    assert "| `vgg16` |" in page
    assert build(root)[README].startswith(f"before\n{BEGIN}\n| embedded model |")
    assert build(root)[README].endswith(f"{END}\nafter\n")


def test_hardest_question_comes_first(root: Path) -> None:
    slices = record(models=("teacher", "student 0", "student 1"))
    blocks = record(grouping="blocks of 40 numbers in second, joined with near-duplicates", seed=1)
    sources = record(protocol="sources", grouping="near-duplicates", seed=2)
    add(root, "a-slices", slices)
    add(root, "b-blocks", blocks)
    add(root, "c-sources", sources)
    pages = build(root)
    page = pages[PAGE]
    lead = page[page.index("## Results") : page.index("###")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lead.splitlines() if line.startswith("|")][2:]
    optimistic = "slices (optimistic: neighboring slices of one patient on both sides)"
    assert [row[:3] for row in rows] == [
        ["whole sources", "first", RECIPE],
        ["whole sources", "second", RECIPE],
        ["blocks of patients", "all sources", RECIPE],
        [optimistic, "all sources", f"{RECIPE}, teacher"],
        [optimistic, "all sources", "small, student 0"],
        [optimistic, "all sources", "small, student 1"],
    ]
    expected = [sources["by_source"]["first"]["model"], sources["by_source"]["second"]["model"]]
    expected += [blocks["pooled"]["model"], *slices["pooled"].values()]
    for row, figures in zip(rows, expected, strict=True):
        for cell, key in zip(row[4:], ("auc", "sensitivity", "specificity"), strict=True):
            assert cell == with_interval(*(figures[key][bound] for bound in ("value", "low", "high")))
    for name in ("a-slices", "b-blocks", "c-sources"):
        assert f"[{name}](evidence/crossval/{name}.json)" in page
    assert "`mri-edge train PATH --cv 2`, seed 0, 2 folds, 1,240 steps." in page
    assert "2 folds, 620 steps for the teacher, 20 epochs for the students." in page
    # README shows what holds out most, and no figure of slices.
    assert f"whole sources held out: AUC {rows[0][4]} on first, {rows[1][4]} on second" in pages[README]
    assert all(row[4] not in pages[README] for row in rows[3:])


def test_default_model_is_compared_with_vgg16_on_the_same_images(root: Path) -> None:
    blocks = "blocks of 40 numbers in second, joined with near-duplicates"
    add(root, "lite-blocks", record(grouping=blocks, seed=1))
    assert "compared with vgg16" not in build(root)[PAGE]
    add(root, "robust-blocks", record(grouping=blocks, seed=1) | {"recipe": "robust"})
    same = build(root)[PAGE]
    section = same[same.index("## The default model compared with vgg16") : same.index("## Thresholds")]
    nothing = "+0.000 (+0.000 to +0.000)"
    assert f"| blocks of patients | all sources | {nothing} | {nothing} | {nothing} |" in section
    add(root, "robust-blocks", record(grouping=blocks, seed=2) | {"recipe": "robust"})
    other = build(root)[PAGE]
    assert nothing not in other[other.index("## The default model compared with vgg16") : other.index("## Thresholds")]
    add(root, "robust-blocks", record(grouping=blocks, images=120) | {"recipe": "robust"})
    assert "compared with vgg16" not in build(root)[PAGE], "the images differ"


def test_collection_that_was_not_seen_is_compared_with_the_same_images_when_seen(root: Path) -> None:
    blocks = "blocks of 40 numbers in second, joined with near-duplicates"
    unseen = record(protocol="sources", grouping=blocks, seed=1)
    add(root, "lite-sources", unseen)
    assert "not seen minus seen" not in build(root)[PAGE]
    seen = record(grouping=blocks, seed=2)
    add(root, "lite-blocks", seen)
    page = build(root)[PAGE]
    section = page[page.index("## One collection or both") : page.index("## Thresholds")]
    table = section[section.index("| not seen minus seen") :]
    for source in ("first", "second"):
        [row] = [line for line in table.splitlines() if line.startswith(f"| {source} |")]
        for cell, key in zip(row.split("|")[2:5:2], ("auc", "accuracy"), strict=True):
            difference = np.subtract(*(found["by_source"][source]["model"][key]["value"] for found in (unseen, seen)))
            value, low, high = (float(number) for number in re.findall(r"[+-][0-9.]+", cell))
            assert value == pytest.approx(difference, abs=6e-4)
            assert low < value < high


def test_changed_scans_and_parity_say_which_images_they_count(root: Path) -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "images": 1098, "method": "by hand"}
    stress = {"model": {"none": dict.fromkeys(("auc", "sensitivity", "specificity"), figure)}}
    add(root, "blocks", record() | {"stress": stress})
    page = build(root)[PAGE]
    assert "equally many images of each label" in page
    assert f"| none | {RECIPE} | 1,098 | 0.500 (0.400 to 0.600) |" in page
    parity = json.loads((root / "runtime/models/small/parity.json").read_bytes())["artefacts"]["model.int8.onnx"]
    counts = f"{len(parity['flips'])} of {parity['images']:,} | {parity['test_flips']} of {parity['test_images']}"
    assert f"| `small` | `model.int8.onnx` | {counts} |" in page


def test_readme_and_page_give_the_mean_of_all_seeds(root: Path) -> None:
    records = [record(protocol="sources", seed=seed, trained_with=seed) for seed in (0, 1)]
    add(root, "lite-sources", records[0])
    before = build(root)
    assert "mean of" not in before[README]
    assert "The seed changes the figures" not in before[PAGE]
    add(root, "lite-sources-1", records[1])
    pages = build(root)
    assert pages[PAGE].count("### Recipe `lite`") == 1
    section = pages[PAGE].partition("The seed changes the figures")[2].partition("###")[0]
    for source in ("first", "second"):
        values = [found["by_source"][source]["model"]["auc"]["value"] for found in records]
        each = ", ".join(f"{value:.3f}" for value in values)
        [row] = [line for line in section.splitlines() if f"| {source} |" in line]
        assert row.startswith(f"| whole sources | {source} | lite | 0, 1 |")
        assert row.endswith(f"| {each} |")
        auc = row.split("|")[5].strip()
        mean, low, high = (float(number) for number in re.findall(r"[0-9.]+", auc))
        assert mean == pytest.approx(np.mean(values), abs=6e-4)
        assert low < mean < high
        assert f"{auc} on {source}" in pages[README]
    assert "mean of 2 seeds" in pages[README]


def test_seeds_of_more_labels_have_a_table(root: Path) -> None:
    for seed in (0, 1):
        four = record(labels=("glioma", "meningioma", "no tumour", "pituitary"), seed=seed, trained_with=seed)
        add(root, f"four-{seed}", four)
    page = build(root)[PAGE]
    [row] = [line for line in page.splitlines() if f"| {RECIPE} | 1 |" in line]
    macro = four["pooled"]["model"]["macro_auc"]
    assert with_interval(macro["value"], macro["low"], macro["high"]) in row
    assert page.count("4 labels, slices held out") == 1


def test_teacher_with_a_record_of_its_own_is_listed_once(root: Path) -> None:
    add(root, "robust-slices", record(seed=1))
    add(root, "small-slices", record(models=("teacher", "student 0")))
    page = build(root)[PAGE]
    lead = page[page.index("## Results") : page.index("###")]
    assert f"| {RECIPE} |" in lead
    assert "| small, student 0 |" in lead
    assert "teacher" not in lead
    assert "its teacher" not in page[page.index("## Thresholds") : page.index("## Embedded")]


def test_shipped_threshold_is_compared_with_random_eighths(root: Path) -> None:
    found = record(images=320)
    add(root, "blocks", found)
    drawn = draw_thresholds(found, ["model"])
    assert len(np.unique(drawn)) > 100
    manifest = json.loads((root / "runtime/models/lite/manifest.json").read_bytes())
    percentile = 100 * np.mean(drawn <= manifest["threshold"])
    assert f"`lite` has {manifest['threshold']:.3f}, percentile {percentile:.0f}" in build(root)[PAGE]
    # An eighth of so few images is a coarse choice, but its middle is near the choice on all answers.
    answers, truth = np.array(found["images"]["probabilities"]["model"])[:, 1], np.array(found["images"]["label"])
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert low < choose_threshold(answers, truth) < high


def test_four_labels_and_ablations_have_sections_of_their_own(root: Path) -> None:
    four = record(labels=("glioma", "meningioma", "no tumour", "pituitary"))
    add(root, "four-class-blocks", four)
    add(root, "without-lesions", record(seed=3) | {"change": "no drawn lesions"}, folder="ablation")
    page = build(root)[PAGE]
    assert "## Results" not in page  # no threshold, no sensitivity: not comparable with two labels
    assert "## Thresholds" not in page
    assert "AUC, mean of the labels, folds pooled" in page
    assert "called meningioma" in page
    glioma = four["pooled"]["model"]["by_label"]["glioma"]["auc"]
    assert with_interval(glioma["value"], glioma["low"], glioma["high"]) in page
    assert "| no drawn lesions | slices (optimistic" in page
    assert "[without-lesions](evidence/ablation/without-lesions.json)" in page


def test_part_of_a_recipe_is_measured_by_the_mean_difference_of_seeds_on_the_same_images(root: Path) -> None:
    baselines = {seed: record(protocol="sources", seed=seed, trained_with=seed) for seed in (0, 1)}
    changed = {seed: record(protocol="sources", seed=seed + 10, trained_with=seed) for seed in (0, 1, 2)}
    for seed, content in baselines.items():
        add(root, f"base-{seed}", content)
    for seed, content in changed.items():  # nothing to compare seed 2 with
        add(root, f"no-lesions-{seed}", content | {"change": "no drawn lesions"}, folder="ablation")
    page = build(root)[PAGE]
    section = page[page.index("Changed minus unchanged") : page.index("The figures of each record")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    assert [row[:4] for row in rows[2:]] == [
        ["no drawn lesions", "whole sources", source, RECIPE] for source in ("first", "second")
    ]
    for row in rows[2:]:
        values = [
            figures["by_source"][row[2]]["model"]["auc"]["value"]
            - baselines[seed]["by_source"][row[2]]["model"]["auc"]["value"]
            for seed, figures in changed.items()
            if seed in baselines
        ]
        assert row[7] == ", ".join(f"{value:+.3f}" for value in values)
        mean, low, high = (float(number) for number in re.findall(r"[+-][0-9.]+", row[4]))
        assert mean == pytest.approx(np.mean(values), abs=6e-4)
        assert low <= mean <= high
