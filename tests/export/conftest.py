"""Fixtures: a tiny trained classifier, its pictures and its bundle, which export as the full model does."""

from __future__ import annotations

import dataclasses
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.authoring.writer import new_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Manifest
from mri_edge.bundles.split import SPLIT, Split, SplitImage
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import sha256_of

# Without the extra 'export' the test modules cannot be imported.
collect_ignore_glob = [] if find_spec("tensorflow") and find_spec("tf2onnx") else ["test_*.py"]

SIZE = 32
IMAGENET = Preprocessing(SIZE, SIZE, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))


@pytest.fixture(scope="session", autouse=True)
def _tensorflow() -> None:
    from mri_edge.authoring.quiet import load_keras

    load_keras("export")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``no`` and ``yes`` with 60 pictures each. Pictures in ``yes`` show a disc, which is faint in some."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for label in ("no", "yes"):
        (folder / label).mkdir()
        for index in range(60):
            pixels = rng.normal(70, 25, (SIZE, SIZE, 3))
            row, column = rng.integers(8, SIZE - 8, 2)
            if label == "yes":
                pixels[(rows - row) ** 2 + (columns - column) ** 2 < 30] += rng.uniform(30, 140)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / label / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def split(pictures: Path) -> Split:
    """The last 30 of each label are test images."""
    files = [(path, label) for label, name in enumerate(("no", "yes")) for path in sorted((pictures / name).iterdir())]
    return Split(
        tuple(
            SplitImage(
                path.relative_to(pictures).as_posix(), sha256_of(path), label, "test" if path.stem >= "30" else "train"
            )
            for path, label in files
        )
    )


@pytest.fixture(scope="session")
def model(pictures: Path, split: Split):
    """A network of convolution, pooling, flatten and dense layers, trained for a few epochs on the pictures."""
    import keras

    from mri_edge.export.calibration.images import read_batches

    keras.utils.set_random_seed(3)
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(2, activation="softmax"),
        ]
    )
    located = split.locate(pictures, "train")
    pixels = np.concatenate(list(read_batches([path for path, _ in located], IMAGENET)))
    network.compile("adam", "sparse_categorical_crossentropy")
    network.fit(IMAGENET.normalize(pixels), np.array([label for _, label in located]), epochs=25, verbose=0)
    return network


@pytest.fixture(scope="session")
def trained(model, split: Split, tiny_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as training leaves it: model.keras, split.json, manifest."""
    folder = tmp_path_factory.mktemp("trained") / "bundle"
    with new_bundle(folder, dataclasses.replace(tiny_manifest, preprocessing=IMAGENET)) as writer:
        model.save(writer.path("model.keras"))
        writer.add_keras_model()
        writer.add_document(SPLIT, split.to_json())
    return folder


@pytest.fixture(scope="session")
def exported(trained: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with an artifact of every format."""
    from mri_edge.authoring.quiet import quiet
    from mri_edge.export.exporter import Settings, export
    from mri_edge.export.formats import installed_formats

    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("exported") / "bundle"))
    with quiet():
        export(Bundle.open(folder), Settings(formats=installed_formats(), data=pictures))
    return Bundle.open(folder)


@pytest.fixture
def bundle(trained: Path, tmp_path: Path) -> Path:
    """A copy of ``trained`` that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "bundle"))
