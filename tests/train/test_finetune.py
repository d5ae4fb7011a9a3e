"""Test fine-tuning on a network of three small layers: which weights change when, and the result."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.train.loops import finetune as loop
from mri_edge.train.models.vgg16 import VGG16
from mri_edge.train.recipes.base import FineTuning
from mri_edge.train.recipes.lite import LITE
from mri_edge.train.recipes.registry import RECIPES

SCHEDULE = FineTuning(
    epochs=12,
    batch=1,
    learning_rate=0.05,
    epoch_images=1,
    frozen_stages=2,
    warmup_steps=3,
    warmup_rate=0.05,
    rise=2,
    weight_decay=0.0,
    largest_gradient=1.0,
    averaging=0.0,
    label_smoothing=0.0,
)
finetune = functools.partial(loop.finetune, stages=VGG16.stages)


def make_batch(step):
    rng = np.random.default_rng(step)
    label = rng.integers(0, 2, 8)
    pictures = rng.normal(0, 0.3, (8, 6)) + label[:, None]
    return pictures.astype(np.float32), np.eye(2, dtype=np.float32)[label]


@pytest.fixture
def network():
    return build()


def build(precision="float32"):
    keras.utils.set_random_seed(3)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        return layers_of()
    finally:
        keras.config.set_dtype_policy(before)


def layers_of():
    layers = [keras.layers.Dense(6, activation="relu", name=f"block{number}_conv1") for number in (1, 3)]
    backbone = keras.Sequential([keras.Input((6,)), *layers])
    dropout = keras.layers.Dropout(0.3, seed=1)
    head = keras.layers.Dense(2, activation="softmax", name="head", dtype="float32")
    return keras.Sequential([keras.Input((6,)), backbone, dropout, head]), backbone


def weights_of(model):
    return {variable.path: keras.ops.convert_to_numpy(variable).copy() for variable in model.weights}


def moved(before, after, part):
    return max(np.abs(after[path] - before[path]).max() for path in before if part in path)


def test_head_warms_up_then_upper_stages_train_and_lower_ones_stay_frozen(network):
    whole, backbone = network
    start = weights_of(whole)
    seen, reported = [], []

    def watched(step):
        seen.append(step)
        return make_batch(step)

    def report(done, total, loss):
        reported.append((done, total))
        if done == SCHEDULE.warmup_steps:
            warm = weights_of(whole)
            assert moved(start, warm, "head") > 0
            assert moved(start, warm, "block") == 0

    losses = finetune(whole, backbone, SCHEDULE, watched, report)
    assert seen == list(range(15))
    assert reported == [(step, 15) for step in range(1, 16)]
    assert np.mean(losses[-5:]) < np.mean(losses[:3])
    assert moved(start, weights_of(whole), "block1") == 0
    assert moved(start, weights_of(whole), "block3") > 0


def test_result_is_the_running_mean(network):
    whole, backbone = network
    start = whole.get_weights()
    kept = {}
    for averaging in (0.0, 0.9):
        whole.set_weights(start)
        finetune(whole, backbone, dataclasses.replace(SCHEDULE, averaging=averaging), make_batch)
        kept[averaging] = weights_of(whole)
    before = dict(zip(kept[0.0], start, strict=True))
    # After 12 steps, a mean with momentum 0.9 is still close to its start.
    assert 0 < moved(before, kept[0.9], "block3") < moved(before, kept[0.0], "block3")


def test_error_in_a_batch_reaches_the_caller(network):
    def broken(step):
        raise ValueError("no such slice")

    with pytest.raises(ValueError, match="no such slice"):
        finetune(*network, SCHEDULE, broken)


@pytest.fixture(scope="module")
def unbroken():
    """Weights and losses of uninterrupted trainings, by precision."""
    schedule = dataclasses.replace(SCHEDULE, averaging=0.9, weight_decay=0.01)
    kept = {}
    for precision in ("float32", "mixed_bfloat16"):
        whole, backbone = build(precision)
        losses = finetune(whole, backbone, schedule, make_batch)
        kept[precision] = (whole.get_weights(), losses)
    return schedule, kept


@pytest.mark.parametrize(
    ("cut", "epoch_steps", "precision"),
    [
        pytest.param(2, 1, "float32", id="in the warm-up"),
        pytest.param(3, 1, "float32", id="after the warm-up"),
        pytest.param(11, 4, "float32", id="between checkpoints"),
        pytest.param(11, 4, "mixed_bfloat16", id="between checkpoints, bfloat16"),
        pytest.param(15, 1, "float32", id="at the end"),
    ],
)
def test_resumed_training_ends_with_the_same_weights(unbroken, tmp_path, cut, epoch_steps, precision):
    schedule, kept = unbroken
    expected, losses = kept[precision]
    schedule = dataclasses.replace(schedule, epochs=schedule.epochs // epoch_steps, epoch_images=epoch_steps)

    def stop(done, total, loss):
        if done == cut:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "checkpoint.npz"
    with pytest.raises(KeyboardInterrupt):
        finetune(*build(precision), schedule, make_batch, stop, checkpoint=checkpoint)
    steps = []

    def watched(step):
        steps.append(step)
        return make_batch(step)

    resumed, backbone = build(precision)
    assert finetune(resumed, backbone, schedule, watched, checkpoint=checkpoint) == losses
    assert steps == list(range(cut // epoch_steps * epoch_steps, 15))
    for left, right in zip(expected, resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86-64 has a default to change")
def test_tensorflow_computes_with_onednn_on_every_x86_cpu():
    pytest.importorskip("tensorflow")
    program = (
        "from mri_edge.authoring.quiet import load_keras\n"
        "load_keras('train')\n"
        "from tensorflow.python.util import _pywrap_util_port\n"
        "print(_pywrap_util_port.IsMklEnabled())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("way", ["mri-edge", "keras"])
def test_steps_of_a_training_are_timed(way, toy_backbone, monkeypatch, capsys):
    recipe = dataclasses.replace(
        LITE,
        backbone="toy",
        preprocessing=toy_backbone.preprocessing,
        schedule=dataclasses.replace(LITE.schedule, batch=2, frozen_stages=1),
    )
    monkeypatch.setitem(RECIPES, "lite", recipe)
    checkout = Path(__file__).parents[2]
    scans = map(str, sorted((checkout / "examples").glob("*.jpg")))
    monkeypatch.setattr(sys, "argv", ["train_steps.py", way, "lite", "5", *scans])
    runpy.run_path(str(checkout / "scripts" / "measured" / "train_steps.py"))
    assert float(capsys.readouterr().out) > 0
