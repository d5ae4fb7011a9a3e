"""Provide small data folders of drawn pictures, and a recipe that trains in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from mri_edge.bundles.split import Split
from mri_edge.scans.preprocessing import Preprocessing

if TYPE_CHECKING:
    from mri_edge.train.data.folder import Scan
    from mri_edge.train.models.network import Backbone
    from mri_edge.train.models.weights import BackboneWeights


def draw_picture(rng: np.random.Generator, bright: bool, size: int = 40) -> Image.Image:
    """Draw noise, with or without a bright square at a random place, which a head can learn to detect."""
    pixels = rng.integers(0, 90, (size, size), dtype=np.uint8)
    if bright:
        row, column = rng.integers(0, size - 12, 2)
        pixels[row : row + 12, column : column + 12] = 250
    return Image.fromarray(pixels)


def draw_folders(data: Path, seed: int = 5) -> Path:
    """Create a data folder with ``no`` (14 pictures) and ``yes`` (16 pictures)."""
    rng = np.random.default_rng(seed)
    for name, count in (("no", 14), ("yes", 16)):
        (data / name).mkdir(parents=True)
        for index in range(count):
            draw_picture(rng, name == "yes").save(data / name / f"{name}{index:02}.png")
    return data


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A new data folder for each test."""
    return draw_folders(tmp_path / "data")


@pytest.fixture(scope="session")
def shared_folders(tmp_path_factory) -> Path:
    """A shared data folder, for tests that do not change it."""
    return draw_folders(tmp_path_factory.mktemp("shared") / "data")


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow above 1 kB, as if the disk were full. Request it after the fixtures that make files."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def two_sources(tmp_path: Path) -> Path:
    """``data/a/{no,yes}`` and ``data/b/{notumor,glioma}``, with 25 pictures each."""
    rng = np.random.default_rng(8)
    for folder in ("a/no", "a/yes", "b/notumor", "b/glioma"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for index in range(25):
            bright = folder.endswith(("yes", "glioma"))
            draw_picture(rng, bright).save(tmp_path / "data" / folder / f"{index:02}.png")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def small_recipe():
    """The reference recipe for 32 x 32 pictures, with 3 epochs and batches of 4."""
    pytest.importorskip("keras", reason="needs the extra 'train'")
    from mri_edge.train.recipes.base import Head
    from mri_edge.train.recipes.reference import REFERENCE

    return dataclasses.replace(
        REFERENCE,
        preprocessing=Preprocessing(height=32, width=32, channel_order="BGR"),
        head=Head(hidden=16, dropout=0.5),
        schedule=dataclasses.replace(REFERENCE.schedule, batch=4, epochs=3),
    )


@pytest.fixture(scope="session")
def tiny_recipe():
    """The recipe ``robust`` for 32 x 32 pictures, with one epoch in batches of 8."""
    pytest.importorskip("keras", reason="needs the extra 'train'")
    from mri_edge.train.recipes.base import Head
    from mri_edge.train.recipes.robust import ROBUST

    prepared = dataclasses.replace(ROBUST.preprocessing, height=32, width=32)
    schedule = dataclasses.replace(ROBUST.schedule, batch=8, epochs=1)
    return dataclasses.replace(ROBUST, preprocessing=prepared, head=Head(8, 0.5), schedule=schedule)


@pytest.fixture
def eager() -> Iterator[None]:
    """Compute each operation at once: for the few steps of a small training, tracing graphs takes far longer.

    Tests of complete trainings, and those of the loops in ``test_finetune.py``, trace their graphs as users do.
    """
    tensorflow = pytest.importorskip("tensorflow", reason="needs the extra 'train'")
    tensorflow.config.run_functions_eagerly(True)
    yield
    tensorflow.config.run_functions_eagerly(False)


def _build_toy(weights: BackboneWeights | None, height: int, width: int) -> Any:
    """Build two convolutions that map float32 (N, height, width, 3) to (N, height // 8, width // 8, 8)."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    pictures = keras.Input((height, width, 3))
    tensor = layers.Conv2D(8, 3, 4, "same", activation="relu", name="stage1_conv")(pictures)
    features = layers.Conv2D(8, 3, 2, "same", activation="relu", name="stage2_conv")(tensor)
    model = keras.Model(pictures, features, name="toy")
    model.trainable = False
    return model


@pytest.fixture
def toy_backbone(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """Two convolutions with random weights, registered as the backbone ``toy``."""
    pytest.importorskip("keras", reason="needs the extra 'train'")
    from mri_edge.train.models import registry
    from mri_edge.train.models.network import Backbone
    from mri_edge.train.models.weights import BackboneWeights

    backbone = Backbone(
        title="two convolutions",
        build=_build_toy,
        load_weights=lambda source, say: BackboneWeights((), "random", "none", "0" * 64),
        stages=("stage1_", "stage2_"),
        preprocessing=Preprocessing(height=32, width=32),
        feature_stride=8,
        feature_channels=8,
    )
    monkeypatch.setitem(registry.BACKBONES, "toy", backbone)
    return backbone


@pytest.fixture
def toy_reference(small_recipe, toy_backbone):
    """``small_recipe`` on the backbone ``toy``."""
    return dataclasses.replace(small_recipe, backbone="toy")


@pytest.fixture(scope="session")
def small_weights():
    """Seeded random weights with the shapes of VGG16, scaled so that features keep their variance (He et al. 2015)."""
    pytest.importorskip("keras", reason="needs the extra 'train'")
    from mri_edge.train.models.weight_files import KERNEL_SHAPES
    from mri_edge.train.models.weights import BackboneWeights

    rng = np.random.default_rng(6)
    arrays = tuple(
        (
            (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:3]))).astype(np.float32),
            np.zeros(shape[3], np.float32),
        )
        for shape in KERNEL_SHAPES
    )
    return BackboneWeights(arrays, "random", "none", "0" * 64)


@pytest.fixture(scope="session")
def weights_file(small_weights, tmp_path_factory) -> Path:
    """``small_weights`` as a ``.ckpt``, in the format of torchvision's weights."""
    import pickle

    layers = {f"Conv_{i}": {"kernel": kernel, "bias": bias} for i, (kernel, bias) in enumerate(small_weights.arrays)}
    path = tmp_path_factory.mktemp("weights") / "vgg16.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": layers}))
    return path


@pytest.fixture
def reference_split() -> Callable[[Sequence[Scan]], Split]:
    """A function that splits scans as the reference does: a fifth tests, by scikit-learn with seed 42."""
    from mri_edge.train.data.roles import as_split, choose_test

    def split(scans: Sequence[Scan]) -> Split:
        labels = [scan.label for scan in scans]
        return as_split(scans, choose_test("reference", labels, [], test_fraction=0.2, seed=42))

    return split
