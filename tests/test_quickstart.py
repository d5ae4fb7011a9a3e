"""The commands of README's quickstart, from train to bench, run unchanged in an empty folder."""

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
# Options that shorten a command from ten minutes to one.
SHORT = {"train": ["--epochs", "1"], "bench": ["--artifact", "model.int8.onnx"]}


def draw_scans(folder: Path) -> None:
    """Draw 40 images at the network's input size: 20 without and 20 with a bright square."""
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
def workspace(tmp_path: Path) -> Path:
    """A folder that contains only ``scans/`` and ``scan.jpg``."""
    workspace = tmp_path / "empty"
    draw_scans(workspace / "scans")
    Image.open(workspace / "scans" / "yes" / "00.png").save(workspace / "scan.jpg")
    return workspace


@pytest.fixture
def weights_options(request: pytest.FixtureRequest) -> list[str]:
    """Options of ``train`` for random weights from a file, if ImageNet weights are neither cached nor reachable."""
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
    """Return the commands of README's quickstart, from train on."""
    section = README.read_text(encoding="utf-8").partition("\n## Quickstart\n")[2].partition("\n## ")[0]
    section = section[section.index("```console\n$ mri-edge train") :].partition("\n")[2].partition("```")[0]
    lines = [line.removeprefix("$ ").partition("  #")[0].split() for line in section.splitlines()]
    return [line[1:] for line in lines if line[:1] == ["mri-edge"] and line[1] in COMMANDS]


@pytest.mark.slow
def test_quickstart_works_in_an_empty_folder(workspace: Path, weights_options: list[str]) -> None:
    commands = quickstart()
    assert [command[0] for command in commands] == ["train", "export", "predict", "evaluate", "verify", "bench"]
    results = {}
    for command in commands:
        options = [*SHORT.get(command[0], []), *(weights_options if command[0] == "train" else [])]
        done = subprocess.run(
            [sys.executable, "-m", "mri_edge", *command, *options],
            cwd=workspace,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        results[command[0]] = done

    # Each command prints its report and the next command.
    report, following = results["train"].stderr.splitlines()[-2:]
    assert (report, following) == ("report: runs/vgg16/report/index.html", "next: mri-edge export --quantize")
    assert (workspace / "runs/vgg16/report/index.html").is_file()
    report, following = results["export"].stderr.splitlines()[-2:]
    assert report == "report: runs/vgg16/report/parity.html"
    assert following == "next: mri-edge predict scan.jpg --model runs/vgg16"
    # If stderr is not a terminal, training still prints progress. export and evaluate print the bundle that they use.
    assert "epoch   1/1  loss" in results["train"].stderr
    assert "exporting runs/vgg16, trained last" in results["export"].stderr
    assert "scoring runs/vgg16, trained last" in results["evaluate"].stderr
    assert f"scoring on its training folder, {workspace / 'scans'}" in results["evaluate"].stderr
    assert "vgg16" in results["predict"].stdout
    assert "8 images" in results["evaluate"].stdout

    sizes = {path.name: path.stat().st_size for path in (workspace / "runs/vgg16").glob("model.*")}
    for suffix in ("onnx", "tflite"):
        assert sizes[f"model.int8.{suffix}"] <= 0.26 * sizes[f"model.{suffix}"]
    assert sizes["model.int8.onnx"] <= 17.5e6  # the limit for an embedded model

    # The bundle must not contain the path of the folder that it was created in.
    for path in (workspace / "runs").rglob("*"):
        if path.suffix in (".json", ".md", ".html"):
            assert str(workspace) not in path.read_text(encoding="utf-8"), path
    manifest = json.loads((workspace / "runs/vgg16/manifest.json").read_text(encoding="utf-8"))
    assert manifest["creation"]["command"].startswith("mri-edge train PATH")

    # If the data folder was moved, the error names the option for it.
    (workspace / "scans").rename(workspace / "moved")
    command = [sys.executable, "-m", "mri_edge", "export", "--quantize"]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
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


def test_export_of_an_embedded_model_prints_what_to_run_instead(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mri_edge", "export", "vgg16", "--quantize"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    for text in ("is exported already", "mri-edge predict scan.jpg --model vgg16", "mri-edge train scans/"):
        assert text in done.stderr


def test_train_lists_all_missing_options_at_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mri_edge", "train", "--recipe", "small"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for text in ("missing: DIR", "--teacher BUNDLE", "mri-edge train scans/ --recipe small --teacher vgg16"):
        assert text in done.stderr
    assert not list(tmp_path.iterdir())
