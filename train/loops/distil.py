"""Distil a teacher into a small network: collect its answers to random views, then train on them.

G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", 2015; the targets are the teacher's
answers alone, no true labels. The teacher scores each view once; the student sees it many times, each time with a
small random shift, flip and change of brightness, which do not change the answer.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.quiet import load_keras
from mri_edge.storage.atomic import atomic_write
from mri_edge.train.evaluation.calibration import scale_probabilities

from .finetune import made_ahead

Views = NDArray[np.uint8]
Answers = NDArray[np.float32]
Teacher = Callable[[Views], Answers]
Report = Callable[[int, int, float], None]
ViewsOf = Callable[[int], Views]

_VIEWS, _ANSWERS = "views.npy", "answers.npy"
_LARGEST_SHIFT = 5  # pixels of 128
_GAIN, _OFFSET = 0.15, 0.04  # contrast and brightness, to either side


@dataclass(frozen=True)
class Plan:
    """How to distil.

    Attributes
    ----------
    epochs, batch, rate, weight_decay
        Passes over the pool, and AdamW with a linear rise over the first ``rise`` steps, then half a cosine.
    temperature
        Softens the teacher's answers, so that they distinguish near misses from far ones.
    """

    epochs: int
    batch: int
    rate: float
    rise: int
    weight_decay: float
    temperature: float


@dataclass(frozen=True)
class Pool:
    """Views uint8 (N, height, width) and the teacher's answers float32 (N, classes)."""

    views: Views
    answers: Answers


def make_pool(
    views_of: ViewsOf, steps: int, teacher: Teacher, store: Path, report: Report = lambda done, total, loss: None
) -> Pool:
    """Draw ``steps`` batches of gray views of equal size, and store them with the teacher's answers in ``store``.

    The views are memory-mapped. An existing pool is replaced.
    """
    batch = views_of(0).shape
    shape = (steps * batch[0], *batch[1:])
    views = np.lib.format.open_memmap(store / _VIEWS, mode="w+", dtype=np.uint8, shape=shape)
    answers = []
    for step, drawn in enumerate(made_ahead(views_of, steps)):
        views[step * batch[0] : (step + 1) * batch[0]] = drawn
        answers.append(teacher(drawn[..., None].repeat(3, axis=-1)))
        report(step + 1, steps, 0.0)
    views.flush()
    content, all_answers = io.BytesIO(), np.concatenate(answers)
    np.save(content, all_answers)
    atomic_write(store / _ANSWERS, content.getbuffer())  # written last: if they exist, the pool is complete
    return Pool(views, all_answers)


def open_pool(store: Path) -> Pool | None:
    """Return the pool that ``make_pool`` wrote to ``store``; None if there is none or it is incomplete."""
    if not (store / _ANSWERS).is_file():
        return None
    return Pool(np.load(store / _VIEWS, mmap_mode="r"), np.load(store / _ANSWERS))


def distil(
    student: Any, pool: Pool, plan: Plan, seed: int, report: Report = lambda done, total, loss: None
) -> list[float]:
    """Train ``student``, gray float32 (N, height, width, 1) -> probabilities, in place; return each step's loss."""
    keras = load_keras("train")
    targets = scale_probabilities(pool.answers, plan.temperature).astype(np.float32)
    epoch_steps = len(targets) // plan.batch
    total = epoch_steps * plan.epochs

    def make_batch(step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        epoch, place = divmod(step, epoch_steps)
        order = np.random.default_rng([seed, 3, epoch]).permutation(len(targets))
        chosen = np.sort(order[place * plan.batch : (place + 1) * plan.batch])
        rng = np.random.default_rng([seed, 4, step])
        return moved_and_lit(rng, pool.views[chosen]), targets[chosen]

    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total - plan.rise), warmup_target=plan.rate, warmup_steps=plan.rise
    )
    student.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=plan.weight_decay), loss="categorical_crossentropy"
    )
    losses = []
    for batch, wanted in made_ahead(make_batch, total):
        losses.append(float(student.train_on_batch(batch, wanted, return_dict=True)["loss"]))
        report(len(losses), total, losses[-1])
    return losses


def moved_and_lit(rng: np.random.Generator, views: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Flip, shift and relight views uint8 (N, height, width) at random: float32 (N, height, width, 1), 0 to 1."""
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
