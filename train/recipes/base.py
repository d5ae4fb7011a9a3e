"""Recipes: everything that decides what a training does, as data."""

from __future__ import annotations

from dataclasses import dataclass

from mri_edge.errors import UsageError
from mri_edge.scans.preprocessing import Preprocessing


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random transforms, as Keras' ``ImageDataGenerator`` takes them.

    Attributes
    ----------
    rotation
        Degrees, to either side.
    height_shift, width_shift
        Share of the size, to either side.
    shear
        Degrees, to either side: 0.2 here is next to nothing, and is what the reference used.
    zoom
        Factor from ``1 - zoom`` to ``1 + zoom``, drawn for each axis on its own.
    horizontal_flip
        Mirror every second image.
    """

    rotation: float = 0.0
    height_shift: float = 0.0
    width_shift: float = 0.0
    shear: float = 0.0
    zoom: float = 0.0
    horizontal_flip: bool = False


@dataclass(frozen=True)
class Recipe:
    """One way to train: a backbone below, a head of at most one hidden layer above.

    ``test_share`` and ``split_seed`` are scikit-learn's ``test_size`` and ``random_state``;
    ``hidden`` units with ReLU (0: no such layer), then ``dropout``, then softmax; ``batch`` images a step of Adam.
    """

    name: str
    preprocessing: Preprocessing
    augmentation: Augmentation
    test_share: float
    split_seed: int
    hidden: int
    dropout: float
    learning_rate: float
    batch: int
    epochs: int


REFERENCE = Recipe(
    name="reference",
    preprocessing=Preprocessing(channel_order="BGR", scale=1 / 255),
    augmentation=Augmentation(
        rotation=30, height_shift=0.2, width_shift=0.2, shear=0.2, zoom=0.2, horizontal_flip=True
    ),
    test_share=0.2,
    split_seed=42,
    hidden=256,
    dropout=0.5,
    learning_rate=0.001,  # Keras' default for Adam
    batch=32,
    epochs=25,
)

# What ``robust.py`` takes from here: the network and its normalisation. Its steps and its augmentation are there.
ROBUST = Recipe(
    name="robust",
    # RGB mean and deviation that torchvision's ImageNet weights were trained with; torchvision models docs.
    preprocessing=Preprocessing(mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225)),
    augmentation=Augmentation(),
    test_share=REFERENCE.test_share,
    split_seed=REFERENCE.split_seed,
    hidden=256,
    dropout=0.5,
    learning_rate=0.0001,
    batch=32,
    epochs=8,
)

# The network is that of ``small_network.py``, its steps are ``distil.Plan``: rate and batch here are that plan's.
SMALL = Recipe(
    name="small",
    preprocessing=Preprocessing(),
    augmentation=Augmentation(),
    test_share=REFERENCE.test_share,
    split_seed=REFERENCE.split_seed,
    hidden=0,
    dropout=0.2,
    learning_rate=0.003,
    batch=64,
    epochs=20,
)

RECIPES = {recipe.name: recipe for recipe in (REFERENCE, ROBUST, SMALL)}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name. Raises UsageError with the known names."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}", f"Recipes: {', '.join(RECIPES)}")
    return RECIPES[name]
