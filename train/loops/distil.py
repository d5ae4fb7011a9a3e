"""Distil trained bundles, the teachers, into a small network: collect their answers to random views, train on these.

G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", 2015; the targets are the
teacher's answers alone, not the true labels. The teacher scores each view once. The student sees it many times, each
time with a small random shift, flip and change of brightness, which do not change the answer.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.quiet import load_keras
from mri_edge.authoring.teacher import TeacherAnswers
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.split import Role, Split, SplitImage, short
from mri_edge.errors import DataError
from mri_edge.inference.prediction import decide
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import atomic_write, fingerprint
from mri_edge.train.data.folder import Scan
from mri_edge.train.data.labels import Labels
from mri_edge.train.data.mapped import mapped_array
from mri_edge.train.evaluation.calibration import scale_probabilities
from mri_edge.train.models.weights import BackboneWeights
from mri_edge.train.recipes.base import Distillation

from .finetune import prefetch

Views = NDArray[np.uint8]
Answers = NDArray[np.float32]
Teacher = Callable[[Views], Answers]
Report = Callable[[int, int, float], None]
ViewsOf = Callable[[int], Views]

_TEACHER_BATCH = 64  # images that the teachers score at once
_VIEWS, _ANSWERS = "views.npy", "answers.npy"
_LARGEST_SHIFT = 5  # pixels of 128
_GAIN, _OFFSET = 0.15, 0.04  # of contrast and brightness, in both directions


@dataclass(frozen=True)
class Pool:
    """Views uint8 (N, height, width) and the teacher's answers float32 (N, classes)."""

    views: Views
    answers: Answers


class BundleTeacher:
    """The mean answer of one or more bundles, each in the best engine for this machine."""

    def __init__(self, bundles: Sequence[Bundle], labels: Labels, preprocessing: Preprocessing) -> None:
        """Open the bundles.

        Raises
        ------
        DataError
            A bundle has other labels or another input size, or is recalibrated.
        BundleError, EngineError
            A bundle cannot run on this machine.
        """
        # Only a teacher needs the engines.
        from mri_edge.inference.selection import RunOptions
        from mri_edge.train.evaluation.keras_engine import open_classifier

        size = (preprocessing.height, preprocessing.width)
        for bundle in bundles:
            manifest = bundle.manifest
            if manifest.recalibration:
                raise DataError(
                    f"{bundle.folder}: is recalibrated for scans of one site, so it cannot be a teacher",
                    "Name the bundle that it was made from",
                )
            input_size = (manifest.preprocessing.height, manifest.preprocessing.width)
            if manifest.labels != labels.names or input_size != size:
                raise DataError(
                    f"{bundle.folder}: a teacher must have the labels {', '.join(labels.names)} and take "
                    f"{size[0]} x {size[1]} pixels. Received: {', '.join(manifest.labels)}, "
                    f"{input_size[0]} x {input_size[1]}",
                    "Name another --teacher",
                )
        self._classifiers = [open_classifier(bundle, RunOptions()) for bundle in bundles]
        self.bundles = tuple(bundles)
        self.sha256 = tuple(classifier.artifact.sha256 for classifier in self._classifiers)

    def __call__(self, pixels: Views) -> Answers:
        """Return probabilities float32 (N, classes) for pictures uint8 (N, height, width, 3) RGB."""
        answers = [classifier.engine.run(pixels) for classifier in self._classifiers]
        return np.asarray(np.mean(answers, axis=0, dtype=np.float32))

    def split_of(self, scans: Sequence[Scan]) -> Split:
        """Return the split on which every teacher was trained, for the same images.

        The student must use it, because it would otherwise be tested on images that a teacher has seen.

        Raises
        ------
        DataError
            A teacher has no split record, was trained on other images or labels, or on another split than the first.
        """
        splits = [recorded_split(bundle, scans) for bundle in self.bundles]
        for bundle, split in zip(self.bundles, splits, strict=True):
            if split is None or split != splits[0]:
                raise DataError(
                    f"{bundle.folder}: trained on another split of the images, so it may have seen test images",
                    "Train a teacher on this data: mri-edge train --recipe robust",
                )
        assert splits[0] is not None  # noqa: S101 (for the type checker)
        return splits[0]

    def answers(self, pixels: Views) -> TeacherAnswers:
        """Return the answers to the test images, uint8 (N, height, width, 3) RGB in the order of the split."""
        pieces = [self(pixels[start : start + _TEACHER_BATCH]) for start in range(0, len(pixels), _TEACHER_BATCH)]
        probabilities = np.concatenate(pieces)
        manifests = [bundle.manifest for bundle in self.bundles]
        thresholds = [manifest.threshold for manifest in manifests if manifest.threshold is not None]
        # Each teacher was calibrated separately: the threshold of their mean is the mean of their thresholds.
        threshold = float(np.mean(thresholds)) if len(thresholds) == len(manifests) else None
        called = decide(probabilities, manifests[0].positive, threshold)
        return TeacherAnswers(
            self.names, tuple(called.tolist()), tuple(tuple(row) for row in probabilities.astype(float).tolist())
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Name, recipe and seed of each teacher."""
        manifests = [bundle.manifest for bundle in self.bundles]
        return tuple(
            f"{manifest.name} ({manifest.training.recipe}, seed {manifest.training.seed})" for manifest in manifests
        )

    def origin(self) -> BackboneWeights:
        """Describe the teachers in the form in which a manifest describes backbone weights."""
        first = self.bundles[0].manifest
        licence = f"that of the teacher's backbone: {first.licences.get('backbone weights', 'not stated')}"
        return BackboneWeights((), f"distilled from {', '.join(self.names)}", licence, fingerprint(self.sha256))

    def close(self) -> None:
        """Close the engines."""
        for classifier in self._classifiers:
            classifier.close()


def recorded_split(bundle: Bundle, scans: Sequence[Scan]) -> Split | None:
    """Return the roles of the scans in a bundle's split record, or None if it does not list exactly these scans."""
    record = Split.of_bundle(bundle)
    roles: dict[tuple[str, int], list[Role]] = defaultdict(list)
    for image in record.images if record else ():
        roles[short(image.sha256), image.label].append(image.role)
    keys = [(short(scan.sha256), scan.label) for scan in scans]
    if {key: len(found) for key, found in roles.items()} != Counter(keys):
        return None
    # Copies of an image take the roles of its record in their order.
    assigned = (roles[key].pop(0) for key in keys)
    return Split(
        tuple(SplitImage(scan.file, scan.sha256, scan.label, role) for scan, role in zip(scans, assigned, strict=True))
    )


def make_pool(
    views_of: ViewsOf, steps: int, teacher: Teacher, store: Path, report: Report = lambda done, total, loss: None
) -> Pool:
    """Draw ``steps`` batches of gray views, and write them with the teacher's answers to ``store``.

    The views are memory-mapped. An existing pool is replaced. Raises OutputError if it cannot be written.
    """
    batch = views_of(0).shape
    shape = (steps * batch[0], *batch[1:])
    views = mapped_array(store / _VIEWS, np.uint8, shape)
    answers = []
    for step, drawn in enumerate(prefetch(views_of, steps)):
        views[step * batch[0] : (step + 1) * batch[0]] = drawn
        answers.append(teacher(drawn[..., None].repeat(3, axis=-1)))
        report(step + 1, steps, 0.0)
    views.flush()
    content, all_answers = io.BytesIO(), np.concatenate(answers)
    np.save(content, all_answers)
    atomic_write(store / _ANSWERS, content.getbuffer())  # written last, so that its presence means a complete pool
    return Pool(views, all_answers)


def open_pool(store: Path) -> Pool | None:
    """Return the pool that ``make_pool`` wrote to ``store``, or None if it is missing or incomplete."""
    if not (store / _ANSWERS).is_file():
        return None
    return Pool(np.load(store / _VIEWS, mmap_mode="r"), np.load(store / _ANSWERS))


def distil(
    student: Any, pool: Pool, schedule: Distillation, seed: int, report: Report = lambda done, total, loss: None
) -> list[float]:
    """Train ``student`` in place and return the loss of each step.

    ``student`` maps gray views float32 (N, height, width, 1) to probabilities (N, classes).
    """
    keras = load_keras("train")
    targets = scale_probabilities(pool.answers, schedule.temperature).astype(np.float32)
    epoch_steps = len(targets) // schedule.batch
    total = epoch_steps * schedule.epochs

    def make_batch(step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        epoch, place = divmod(step, epoch_steps)
        order = np.random.default_rng([seed, 3, epoch]).permutation(len(targets))
        chosen = np.sort(order[place * schedule.batch : (place + 1) * schedule.batch])
        rng = np.random.default_rng([seed, 4, step])
        return augment_views(rng, pool.views[chosen]), targets[chosen]

    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total - schedule.rise), warmup_target=schedule.learning_rate, warmup_steps=schedule.rise
    )
    student.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=schedule.weight_decay), loss="categorical_crossentropy"
    )
    losses = []
    for batch, wanted in prefetch(make_batch, total):
        losses.append(float(student.train_on_batch(batch, wanted, return_dict=True)["loss"]))
        report(len(losses), total, losses[-1])
    return losses


def augment_views(rng: np.random.Generator, views: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Flip, shift and brighten views uint8 (N, height, width) at random: float32 (N, height, width, 1), 0 to 1."""
    count, height, width = views.shape
    reach = _LARGEST_SHIFT
    framed = np.pad(views, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    moved = np.empty((count, height, width), np.float32)
    for row, (down, right, mirrored) in enumerate(
        rng.integers((0, 0, 0), (2 * reach + 1, 2 * reach + 1, 2), (count, 3))
    ):
        view = framed[row, down : down + height, right : right + width]
        moved[row] = view[:, ::-1] if mirrored else view
    gain = rng.uniform(1 - _GAIN, 1 + _GAIN, (count, 1, 1)) / 255
    offset = rng.uniform(-_OFFSET, _OFFSET, (count, 1, 1))
    lit: NDArray[np.float32] = np.clip(moved * gain + offset, 0, 1).astype(np.float32)
    return lit[..., None]
