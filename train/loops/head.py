"""Train the head on a frozen backbone, with one forward pass of the backbone for each augmented image.

The backbone does not change, so the features of the validation images are computed once, and only the head, a
hundredth of the work, is trained. The result is that of Keras' ``fit`` on the whole network.

An epoch depends only on the weights, the state of the optimizer, the seed and its number. No random state carries over
from one epoch to the next, so a resumed training ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.quiet import load_keras
from mri_edge.train.data.mapped import mapped_array
from mri_edge.train.models.network import Network
from mri_edge.train.recipes.base import RecipeSpec
from mri_edge.train.transforms import affine

from . import checkpoint as checkpoints
from .finetune import prefetch

# Images per batch of the backbone: enough to keep all cores busy, with about 100 MB of activations per layer.
BACKBONE_BATCH = 32

Features = NDArray[np.float32]
Extractor = Callable[[NDArray[np.float32]], Features]


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch. ``number`` counts from 1; ``loss`` and ``accuracy`` include augmentation and dropout."""

    number: int
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Images:
    """A subset of the pictures of a data set.

    ``pixels`` uint8 (M, H, W, 3) RGB belong to the whole data set, which may be memory-mapped. ``rows`` (N,) select the
    subset, and ``labels`` (N,) are its label indices.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[np.intp]
    labels: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: NDArray[np.intp] | slice) -> NDArray[np.uint8]:
        """Return the pixels of some of the images: uint8 (len(indices), H, W, 3)."""
        return self.pixels[self.rows[indices]]


def augmented(
    images: Images, indices: NDArray[np.intp], recipe: RecipeSpec, seed: int, epoch: int
) -> NDArray[np.float32]:
    """Return the network input float32 (len(indices), H, W, 3), each image transformed for this epoch."""
    ranges = recipe.augmentation
    pixels = images.take(indices)
    batch = np.empty(pixels.shape, np.float32)
    for row, index in enumerate(indices):
        rng = np.random.default_rng([seed, epoch, index])
        batch[row] = affine.apply(pixels[row], affine.draw(rng, ranges, *pixels.shape[1:3]))
    return recipe.preprocessing.normalize(batch)


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.intp]:
    """Return the order of the images in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def features_of(images: Images, recipe: RecipeSpec, extract: Extractor, store: Path | None = None) -> Features:
    """Return backbone features (N, h, w, 512) of unaugmented images, memory-mapped from the file ``store`` if given.

    Raises OutputError if the file cannot be written.
    """

    def extract_batch(start: int) -> Features:
        return extract(recipe.preprocessing.normalize(images.take(slice(start, start + BACKBONE_BATCH))))

    first = extract_batch(0)
    shape = (len(images), *first.shape[1:])
    features = mapped_array(store, np.float32, shape) if store else np.empty(shape, np.float32)
    features[: len(first)] = first
    for start in range(BACKBONE_BATCH, len(images), BACKBONE_BATCH):
        features[start : start + BACKBONE_BATCH] = extract_batch(start)
    return features


def fit(
    network: Network,
    train: Images,
    validation: Images,
    recipe: RecipeSpec,
    *,
    seed: int,
    checkpoint: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    began: Callable[[int], None] = lambda epoch: None,
    trained: Callable[[int], None] = lambda images: None,
    epoch_ended: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Train ``network.head`` for ``recipe.schedule.epochs`` epochs and return the history.

    Parameters
    ----------
    checkpoint
        File for the state after each epoch; if it exists, training continues from it. The features of the validation
        images are stored in the same folder, so that they do not have to fit into memory.
    say, began, trained, epoch_ended
        Called with a message before training, the number of the first epoch, the number of images that each batch
        adds, and each finished epoch.
    """
    keras = load_keras("train")
    head = network.head
    classes = head.output_shape[-1]
    targets = keras.utils.to_categorical(train.labels, classes)
    state = [*head.trainable_variables, *head.optimizer.variables]
    history = [Epoch(**record) for record in checkpoints.facts_in(checkpoint) or ()]
    if checkpoint and history:
        checkpoints.restore(checkpoint, state)
    extract = network.backbone.predict_on_batch
    say(f"computing the features of {len(validation)} validation images")
    val_features = features_of(
        validation, recipe, extract, checkpoint.with_name("validation.npy") if checkpoint else None
    )
    val_targets = keras.utils.to_categorical(validation.labels, classes)
    began(len(history) + 1)
    for epoch in range(len(history) + 1, recipe.schedule.epochs + 1):
        seed_dropout(head, seed, epoch)
        sums = np.zeros(2)
        for indices, pictures in _augmented_batches(train, recipe, seed, epoch):
            features = extract(pictures)
            for start in range(0, len(indices), recipe.schedule.batch):
                batch = slice(start, start + recipe.schedule.batch)
                head.reset_metrics()
                loss, accuracy = head.train_on_batch(features[batch], targets[indices[batch]])
                sums += len(features[batch]) * np.array([loss, accuracy], float)
            trained(len(indices))
        val_loss, val_accuracy = _evaluate(head, val_features, val_targets, recipe.schedule.batch)
        history.append(
            Epoch(
                epoch,
                loss=sums[0] / len(train),
                accuracy=sums[1] / len(train),
                val_loss=val_loss,
                val_accuracy=val_accuracy,
            )
        )
        if checkpoint:
            checkpoints.save(checkpoint, state, [asdict(record) for record in history])
        epoch_ended(history[-1])
    return history


def _evaluate(head: Any, features: Features, targets: NDArray[np.float32], batch: int) -> tuple[float, float]:
    """Return loss and accuracy. Keras' own ``evaluate`` would copy all features into memory."""
    sums = np.zeros(2)
    for start in range(0, len(features), batch):
        part = np.asarray(features[start : start + batch])
        head.reset_metrics()
        sums += len(part) * np.array(head.test_on_batch(part, targets[start : start + batch]), float)
    loss, accuracy = sums / len(features)
    return float(loss), float(accuracy)


def seed_dropout(head: Any, seed: int, epoch: int) -> None:
    """Seed the dropout masks of an epoch by its number."""
    for layer in head.layers:
        if generator := getattr(layer, "seed_generator", None):
            generator.state.assign([seed, epoch])


def _augmented_batches(
    train: Images, recipe: RecipeSpec, seed: int, epoch: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Yield batches for the backbone; a thread augments the next ones while the caller processes the last."""
    order = epoch_order(len(train), seed, epoch)
    count = max(1, BACKBONE_BATCH // recipe.schedule.batch) * recipe.schedule.batch  # whole batches of the head
    parts = [order[start : start + count] for start in range(0, len(order), count)]
    pictures = prefetch(lambda number: augmented(train, parts[number], recipe, seed, epoch), len(parts))
    yield from zip(parts, pictures, strict=True)
