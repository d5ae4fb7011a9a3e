"""Train one network by a recipe: the type of its schedule chooses the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.quiet import load_keras
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.data.collection import Collection, Indices
from mri_edge.train.data.labels import Labels
from mri_edge.train.data.sampling import ViewsOf, view_maker
from mri_edge.train.evaluation import calibration
from mri_edge.train.loops import distil
from mri_edge.train.loops.finetune import Batch, fast_precision, finetune
from mri_edge.train.loops.head import Epoch, Images, fit
from mri_edge.train.loops.progress import step_progress, training_progress
from mri_edge.train.models.network import Network, build_network, predict
from mri_edge.train.models.registry import find_backbone
from mri_edge.train.models.weights import BackboneWeights
from mri_edge.train.recipes.base import Calibration, Distillation, FineTuning, HeadTraining, RecipeSpec

Teacher = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Job:
    """One training: the images and their roles, and where its state is kept.

    Attributes
    ----------
    train, validation, watched
        Rows of ``data``. The temperature and the threshold are chosen on ``validation`` images if the recipe
        calibrates. The loss on ``watched`` images is only shown after each epoch of a head training.
    weights
        Pretrained weights of the backbone; ``None`` keeps random ones, for tests.
    store
        Folder for the checkpoint and stored features; ``None`` stores neither.
    label
        Prefix of each line of progress, such as ``"fold 2/5"``.
    """

    data: Collection
    labels: Labels
    train: Indices
    validation: Indices
    watched: Indices
    weights: BackboneWeights | None
    seed: int
    store: Path | None = None
    label: str = ""

    @property
    def checkpoint(self) -> Path | None:
        """The file with the state of the training, or None without a store."""
        return self.store / "checkpoint.npz" if self.store else None


@dataclass(frozen=True)
class Trained:
    """A finished network and how it was made.

    ``network`` computes in float32 and is exported; ``quick`` has the same weights in the precision of the training.
    Both include the temperature. ``details`` go into the manifest.
    """

    network: Network
    quick: Network
    temperature: float | None
    threshold: float | None
    details: dict[str, Any]
    history: Sequence[Epoch] = ()


def train_model(job: Job, recipe: RecipeSpec, pool: distil.Pool | None = None) -> Trained:
    """Train on ``job.train`` and calibrate on ``job.validation``. A distillation learns from ``pool`` instead."""
    if isinstance(recipe.schedule, HeadTraining):
        return _train_head(job, recipe, recipe.schedule)
    if isinstance(recipe.schedule, FineTuning):
        return _fine_tune(job, recipe, recipe.schedule)
    if pool is None:
        raise ValueError("a distillation needs a pool of views")
    return _distil(job, recipe, recipe.schedule, pool)


def schedule_of(recipe: RecipeSpec) -> dict[str, Any]:
    """Return the schedule as manifests and cross-validations record it, in plain types."""
    schedule = recipe.schedule
    if isinstance(schedule, HeadTraining):
        return dataclasses.asdict(schedule)
    if isinstance(schedule, FineTuning):
        return {
            "frozen_blocks": schedule.frozen_stages,
            "warm_steps": schedule.warmup_steps,
            "warm_rate": schedule.warmup_rate,
            "steps": schedule.steps,
            "rate": schedule.learning_rate,
            "rise": schedule.rise,
            "weight_decay": schedule.weight_decay,
            "largest_gradient": schedule.largest_gradient,
            "averaging": schedule.averaging,
            **({"initial_share": schedule.initial_share} if schedule.initial_share else {}),
        }
    return {
        "epochs": schedule.epochs,
        "batch": schedule.batch,
        "rate": schedule.learning_rate,
        "rise": schedule.rise,
        "weight_decay": schedule.weight_decay,
        "temperature": schedule.temperature,
    }


def _train_head(job: Job, recipe: RecipeSpec, schedule: HeadTraining) -> Trained:
    backbone = find_backbone(recipe.backbone).build(
        job.weights, recipe.preprocessing.height, recipe.preprocessing.width
    )
    network = build_network(backbone, recipe.head, schedule.learning_rate, len(job.labels.names), job.seed)
    train, watched = (Images(job.data.pixels, rows, job.data.label[rows]) for rows in (job.train, job.watched))
    with training_progress(len(job.train), schedule.epochs, f"{job.label}, " if job.label else "") as progress:
        history = fit(
            network,
            train,
            watched,
            recipe,
            seed=job.seed,
            checkpoint=job.checkpoint,
            say=progress.note,
            began=progress.started,
            trained=progress.images,
            epoch_ended=progress.epoch,
        )
    temperature = threshold = None
    details = {
        "name": recipe.name,
        "preprocessing": dataclasses.asdict(recipe.preprocessing),
        "augmentation": dataclasses.asdict(recipe.augmentation),
        "test_share": recipe.split.test_fraction,
        "split_seed": recipe.split.seed,
        **dataclasses.asdict(recipe.head),
        "learning_rate": schedule.learning_rate,
        "batch": schedule.batch,
        "epochs": schedule.epochs,
    }
    if recipe.calibration:
        temperature, threshold = calibrate(network, job, recipe.preprocessing, recipe.calibration)
        details |= _calibration_facts(job, recipe.calibration, temperature)
    return Trained(network, network, temperature, threshold, details, history)


def _fine_tune(job: Job, recipe: RecipeSpec, schedule: FineTuning) -> Trained:
    backbone = find_backbone(recipe.backbone)
    classes = len(job.labels.names)
    precision = fast_precision(backbone)
    working = build_in_precision(job.weights, recipe, classes, job.seed, precision)
    initial = working.backbone.get_weights()
    with step_progress(job.label or "fine-tuning", first=schedule.warmup_steps, every=schedule.epoch_steps) as report:
        losses = finetune(
            working.whole,
            working.backbone,
            schedule,
            _batch_maker(job, recipe, schedule),
            report,
            stages=backbone.stages,
            checkpoint=job.checkpoint,
        )
    if kept := schedule.initial_share:
        pairs = zip(working.backbone.get_weights(), initial, strict=True)
        working.backbone.set_weights([(1 - kept) * tuned + kept * before for tuned, before in pairs])
    # Copy the weights to a network that computes in float32, which is exported.
    network = build_in_precision(None, recipe, classes, job.seed, "float32")
    network.whole.set_weights(working.whole.get_weights())
    policy = recipe.calibration or Calibration()
    temperature, threshold = calibrate(network, job, recipe.preprocessing, policy)
    working.whole.set_weights(network.whole.get_weights())
    return Trained(
        network,
        working,
        temperature,
        threshold,
        {
            "architecture": dataclasses.asdict(recipe.head),
            "plan": schedule_of(recipe),
            "precision": precision,
            "batch": schedule.batch,
            "label_smoothing": schedule.label_smoothing,
            "drawn_lesion_share": recipe.scan_views.lesion_probability if classes == 2 else 0,
            **({"filtered_share": share} if (share := recipe.scan_views.filter_probability) else {}),
            "loss_by_epoch": _means(losses, schedule.epoch_steps),
            **_calibration_facts(job, policy, temperature),
        },
    )


def _batch_maker(job: Job, recipe: RecipeSpec, schedule: FineTuning) -> Callable[[int], Batch]:
    views_of = _view_maker(job, recipe, schedule.warmup_steps + schedule.steps)
    classes = len(job.labels.names)

    def make_batch(step: int) -> Batch:
        views, label = views_of(step)
        targets = np.full((len(label), classes), schedule.label_smoothing / classes, np.float32)
        targets[np.arange(len(label)), label] += 1 - schedule.label_smoothing
        return recipe.preprocessing.normalize(views[..., None].repeat(3, axis=-1)), targets

    return make_batch


def _view_maker(job: Job, recipe: RecipeSpec, steps: int) -> ViewsOf:
    return view_maker(
        job.data,
        job.train,
        recipe.preprocessing,
        recipe.scan_views,
        steps=steps,
        batch=recipe.schedule.batch,
        labels=job.labels,
        seed=job.seed,
    )


def build_in_precision(
    weights: BackboneWeights | None, recipe: RecipeSpec, classes: int, seed: int, precision: str
) -> Network:
    """Build a recipe's network with a Keras dtype policy; ``None`` keeps random initial weights."""
    keras = load_keras("train")
    backbone = find_backbone(recipe.backbone)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        keras.utils.set_random_seed(seed)
        layers = backbone.build(weights, recipe.preprocessing.height, recipe.preprocessing.width)
        if backbone.ignore_color:
            backbone.ignore_color(layers, recipe.preprocessing)
        return build_network(layers, recipe.head, recipe.schedule.learning_rate, classes, seed)
    finally:
        keras.config.set_dtype_policy(before)


def draw_pool(
    job: Job, recipe: RecipeSpec, teacher: Teacher, store: Path, report: distil.Report = lambda done, total, loss: None
) -> distil.Pool:
    """Draw random views of the training images and ask the teacher about them, unless ``store`` has a complete pool."""
    if (found := distil.open_pool(store)) is not None:
        return found
    schedule = recipe.schedule
    assert isinstance(schedule, Distillation)  # noqa: S101 (for the type checker)
    steps = schedule.pool_views // schedule.batch
    views_of = _view_maker(job, recipe, steps)
    return distil.make_pool(lambda step: views_of(step)[0], steps, teacher, store, report)


def pool_bytes(recipe: RecipeSpec) -> int:
    """Return the bytes that ``draw_pool`` writes to its store, or 0 if the recipe has no pool."""
    views = recipe.schedule.pool_views if isinstance(recipe.schedule, Distillation) else 0
    return views * recipe.preprocessing.height * recipe.preprocessing.width


def _distil(job: Job, recipe: RecipeSpec, schedule: Distillation, pool: distil.Pool) -> Trained:
    student = find_backbone(recipe.backbone).student
    if student is None:
        raise ValueError(f"backbone {recipe.backbone!r} cannot be distilled")
    classes = len(job.labels.names)
    trainable = student.build_trainable(recipe, classes, job.seed)
    with step_progress(job.label or "distilling", every=len(pool.answers) // schedule.batch) as report:
        losses = distil.distil(trainable, pool, schedule, job.seed, report)
    network = student.build_shipped(recipe, classes)
    student.fold(trainable, network)
    policy = recipe.calibration or Calibration()
    temperature, threshold = calibrate(network, job, recipe.preprocessing, policy)
    return Trained(
        network,
        network,
        temperature,
        threshold,
        {
            "architecture": student.architecture(recipe),
            "plan": schedule_of(recipe),
            "pool_views": len(pool.answers),
            "loss_by_epoch": np.reshape(losses, (schedule.epochs, -1)).mean(axis=1).tolist(),
            **_calibration_facts(job, policy, temperature),
        },
    )


def calibrate(
    network: Network, job: Job, preprocessing: Preprocessing, policy: Calibration
) -> tuple[float, float | None]:
    """Fit a temperature on the validation images and build it into ``network``.

    Returns
    -------
    The temperature, and the threshold chosen on the calibrated probabilities, or None without a positive label.
    """
    label, positive = job.data.label[job.validation], job.labels.positive
    probabilities = predict(network.whole, job.data.pixels, preprocessing, rows=job.validation)
    temperature = calibration.fit_temperature(probabilities, label)
    calibration.build_in_temperature(network.whole, temperature)
    if positive is None:
        return temperature, None
    scores = calibration.scale_probabilities(probabilities, temperature)[:, positive]
    return temperature, calibration.choose_threshold(scores, (label == positive).astype(int), policy.target_sensitivity)


def _calibration_facts(job: Job, policy: Calibration, temperature: float) -> dict[str, Any]:
    facts: dict[str, Any] = {"temperature": temperature, "validation_images": len(job.validation)}
    if job.labels.positive is not None:
        facts |= {"threshold_rule": policy.threshold_rule, "target_sensitivity": policy.target_sensitivity}
    return facts


def _means(losses: Sequence[float], steps: int) -> list[float]:
    return [float(np.mean(losses[start : start + steps])) for start in range(0, len(losses), steps)]
