"""Fine-tune a network: warm up its head, then train it together with the upper stages of the backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.quiet import load_keras
from mri_edge.device import machine
from mri_edge.train.models.network import Backbone
from mri_edge.train.recipes.base import FineTuning

from . import checkpoint as checkpoints

Batch = tuple[NDArray[np.float32], NDArray[np.float32]]
Made = TypeVar("Made")

_AHEAD = 4  # batches that are prepared in advance


def fast_precision(backbone: Backbone) -> str:
    """Return ``mixed_bfloat16`` if a step of the training is faster in it on this hardware, else ``float32``.

    Products are computed in bfloat16, sums and weights in float32. On CPUs, a step of VGG16 is five times as fast with
    AMX, and 1.8 times with AVX512-BF16 (measured). GPUs are those that the backend lists.
    """
    if not backbone.fast_in_bfloat16:
        return "float32"
    # The ARM flag "bf16" is ignored, because no speed-up was measured there.
    found = machine.cpu()
    if found.architecture == "x86_64" and found.instructions & {"amx-bf16", "bf16"}:
        return "mixed_bfloat16"
    keras = load_keras("train")
    return "mixed_bfloat16" if keras.distribution.list_devices("gpu") else "float32"


def finetune(
    network: Any,
    backbone: Any,
    schedule: FineTuning,
    make_batch: Callable[[int], Batch],
    report: Callable[[int, int, float], None] = lambda done, total, loss: None,
    *,
    stages: Sequence[str],
    checkpoint: Path | None = None,
) -> list[float]:
    """Train a network in place.

    Parameters
    ----------
    network
        Keras model that maps normalized pictures float32 (N, H, W, 3) to class probabilities.
    backbone
        The backbone inside ``network``.
    make_batch
        Called once for each step, 0, 1, …, in a separate thread; returns pictures and targets (N, classes). Its result
        must depend only on the step, so that a run is repeatable.
    report
        Called after each step with the steps done, the total, and the loss of the step.
    stages
        Prefixes of the layer names of each stage of the backbone, from the input upwards.
    checkpoint
        File for the state, saved after every epoch and at the end; if it exists, training continues from it and ends
        with the same weights as an uninterrupted one.

    Returns
    -------
    The loss of each step.
    """
    keras = load_keras("train")
    total = schedule.warmup_steps + schedule.steps
    losses: list[float] = checkpoints.facts_in(checkpoint) or []
    resumed = len(losses)
    batches = prefetch(make_batch, total, resumed)

    def run(first: int, last: int, optimizer: Any) -> None:
        """Train the steps from ``first`` to ``last`` that the checkpoint does not contain."""
        if last < resumed:
            return
        network.compile(optimizer=optimizer, loss="categorical_crossentropy")
        optimizer.build(network.trainable_variables)
        # The variables of the network include the random state of its dropout.
        state = [*network.variables, *optimizer.variables]
        if checkpoint and resumed > first:
            checkpoints.restore(checkpoint, state)
        for _ in range(max(first, resumed), last):
            network.reset_metrics()  # otherwise Keras returns the mean since compilation
            losses.append(float(network.train_on_batch(*next(batches), return_dict=True)["loss"]))
            if checkpoint and (len(losses) % schedule.epoch_steps == 0 or len(losses) == total):
                checkpoints.save(checkpoint, state, losses)
            report(len(losses), total, losses[-1])

    backbone.trainable = False
    run(0, schedule.warmup_steps, keras.optimizers.Adam(schedule.warmup_rate))
    unfreeze(backbone, stages[: schedule.frozen_stages])
    optimizer = fine_tuning_optimizer(schedule)
    run(schedule.warmup_steps, total, optimizer)
    optimizer.finalize_variable_values(network.trainable_variables)
    return losses


def unfreeze(backbone: Any, frozen: Sequence[str]) -> None:
    """Let all layers of a backbone train, except those whose names begin with one of ``frozen``."""
    backbone.trainable = True
    for layer in backbone.layers:
        layer.trainable = not layer.name.startswith(tuple(frozen))


def fine_tuning_optimizer(schedule: FineTuning) -> Any:
    """Return AdamW with the rates, decay, clipping and averaging of a schedule."""
    keras = load_keras("train")
    return keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(
            0.0,
            max(1, schedule.steps - schedule.rise),
            alpha=0.02,
            warmup_target=schedule.learning_rate,
            warmup_steps=schedule.rise,
        ),
        weight_decay=schedule.weight_decay,
        clipnorm=schedule.largest_gradient,
        use_ema=True,
        ema_momentum=schedule.averaging,
    )


def prefetch(make_batch: Callable[[int], Made], count: int, first: int = 0) -> Iterator[Made]:
    """Yield ``make_batch(first)`` to ``make_batch(count - 1)``, each computed in a thread while the caller works."""
    with ThreadPoolExecutor(1) as thread:
        waiting: list[Future[Made]] = []
        for step in range(first, count):
            waiting.append(thread.submit(make_batch, step))
            if len(waiting) > _AHEAD:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
