"""Run README's commands from train to bench, unchanged, in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

for library in ("keras", "tf2onnx", "sklearn"):
    pytest.importorskip(library, reason="needs the extras 'train' and 'export'")

from mri_edge.cli import COMMANDS

README = Path(__file__).resolve().parents[1] / "README.md"
# Options that make a command take a minute instead of ten.
SHORT = {"train": ["--epochs", "1"], "bench": ["--artifact", "model.int8.onnx"]}


def draw_scans(folder: Path) -> None:
    """40 pictures at the network's size, without and with a bright square."""
    rng = np.random.default_rng(5)
    for label in ("no", "yes"):
        (folder / label).mkdir(parents=True)
        for index in range(20):
            pixels = rng.integers(0, 90, (128, 128), dtype=np.uint8)
            if label == "yes":
                row, column = rng.integers(0, 90, 2)
                pixels[row : row + 38, column : column + 38] = 250
            Image.fromarray(pixels).save(folder / label / f"{index:02}.png")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that holds only ``scans/`` and ``scan.jpg``."""
    place = tmp_path / "empty"
    draw_scans(place / "scans")
    Image.open(place / "scans" / "yes" / "00.png").save(place / "scan.jpg")
    return place


@pytest.fixture
def offline(request: pytest.FixtureRequest) -> list[str]:
    """If ImageNet weights are neither cached nor reachable, return options of ``train`` for random ones from a file."""
    from mri_edge.errors import WeightsError
    from mri_edge.train.models.weight_files import KERNEL_SHAPES
    from mri_edge.train.models.weights import load_weights

    try:
        load_weights("auto")
    except WeightsError:
        rng = np.random.default_rng(6)
        layers = {
            f"Conv_{index}": {
                "kernel": (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:3]))).astype(np.float32),
                "bias": np.zeros(shape[3], np.float32),
            }
            for index, shape in enumerate(KERNEL_SHAPES)
        }
        import pickle

        file = request.getfixturevalue("tmp_path") / "vgg16.ckpt"
        file.write_bytes(pickle.dumps({"VGG16_0": layers}))
        return ["--backbone-weights", str(file)]
    return []


def quickstart() -> list[list[str]]:
    """Return the commands of README's quickstart from train on, in their order."""
    section = README.read_text(encoding="utf-8").partition("\n## Quickstart\n")[2].partition("\n## ")[0]
    section = section[section.index("```console\n$ mri-edge train") :].partition("\n")[2].partition("```")[0]
    lines = [line.removeprefix("$ ").partition("  #")[0].split() for line in section.splitlines()]
    return [line[1:] for line in lines if line[:1] == ["mri-edge"] and line[1] in COMMANDS]


@pytest.mark.slow
def test_the_quickstart_of_the_readme_works_in_an_empty_folder(place: Path, offline: list[str]) -> None:
    commands = quickstart()
    assert [words[0] for words in commands] == ["train", "export", "predict", "evaluate", "verify", "bench"]
    said = {}
    for words in commands:
        more = [*SHORT.get(words[0], []), *(offline if words[0] == "train" else [])]
        done = subprocess.run(
            [sys.executable, "-m", "mri_edge", *words, *more],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        said[words[0]] = done

    # Each command names the next one, and the page to look at.
    report, following = said["train"].stderr.splitlines()[-2:]
    assert (report, following) == ("report: runs/vgg16/report/index.html", "next: mri-edge export --quantize")
    assert (place / "runs/vgg16/report/index.html").is_file()
    report, following = said["export"].stderr.splitlines()[-2:]
    assert report == "report: runs/vgg16/report/parity.html"
    assert following == "next: mri-edge predict scan.jpg --model runs/vgg16"
    # If stderr is not a terminal, training still prints; export and evaluate name what they chose.
    assert "epoch   1/1  loss" in said["train"].stderr
    assert "exporting runs/vgg16, trained last" in said["export"].stderr
    assert "scoring runs/vgg16, trained last" in said["evaluate"].stderr
    assert f"scoring on its training folder, {place / 'scans'}" in said["evaluate"].stderr
    assert "vgg16" in said["predict"].stdout
    assert "8 images" in said["evaluate"].stdout

    # The bundle must not contain the path where it was made.
    for path in (place / "runs").rglob("*"):
        if path.suffix in (".json", ".md", ".html"):
            assert str(place) not in path.read_text(encoding="utf-8"), path
    manifest = json.loads((place / "runs/vgg16/manifest.json").read_text(encoding="utf-8"))
    assert manifest["creation"]["command"].startswith("mri-edge train PATH")

    # If the data folder has moved, the error names the option for it.
    (place / "scans").rename(place / "moved")
    again = [sys.executable, "-m", "mri_edge", "export", "--quantize"]
    done = subprocess.run(again, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no longer there. Name the folder where the images are now: --data DIR" in done.stderr


def test_export_without_a_bundle_prints_how_to_train_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mri_edge", "export", "--quantize"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "mri-edge: error: no bundle is named, and runs/ holds none to export. Train one first: mri-edge train scans/\n"
    )
    assert not os.listdir(tmp_path)  # noqa: PTH208


def test_export_of_an_embedded_model_prints_its_purpose(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mri_edge", "export", "vgg16", "--quantize"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    for words in ("is exported already", "mri-edge predict scan.jpg --model vgg16", "mri-edge train scans/"):
        assert words in done.stderr


def test_train_names_all_that_is_missing_at_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mri_edge", "train", "--recipe", "small"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for words in ("missing: DIR", "--teacher BUNDLE", "mri-edge train scans/ --recipe small --teacher vgg16"):
        assert words in done.stderr
    assert not list(tmp_path.iterdir())
