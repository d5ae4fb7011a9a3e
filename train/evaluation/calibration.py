"""Calibrate probabilities by a temperature, and choose the threshold between negative and positive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from mri_edge.errors import DataError

if TYPE_CHECKING:  # a recalibration needs no Keras
    import keras

Probabilities = NDArray[np.floating]
Labels = NDArray[np.integer]

TARGET_SENSITIVITY = 0.95


def fit_temperature(
    probabilities: Probabilities,
    labels: Labels,
    *,
    proportions: Sequence[float] | None = None,
) -> float:
    """Find the temperature that calibrates held-out probabilities best (Guo et al. 2017, section 4.2).

    Parameters
    ----------
    probabilities
        (N, classes), softmax output; its logarithm is the logits up to a constant.
    labels
        (N,) class indices.
    proportions
        The proportion of each class where the probabilities will be used; the sum is 1. Each class has this weight in
        the likelihood, and the logarithm of its ratio to equal proportions is added to the scaled logits
        (C. Elkan, IJCAI 2001). Default: the same for every class, as in training, because the result must not depend
        on how many tumors the validation set happens to contain.

    The outcome of a scan counts as slightly less than certain, by one more scan of each class (J. Platt, "Probabilistic
    outputs for support vector machines", 1999, 2.2). Validation scans are often separated perfectly, and then the
    likelihood alone asks for a temperature of 0. The odds of this doubt follow ``proportions``, as the probabilities
    do: without it, the doubt of a negative scan would outweigh a low prevalence, and flatten every answer.

    Returns
    -------
    A positive factor by which to divide the logits; 1.0 changes nothing.
    """
    logits = np.log(np.clip(np.asarray(probabilities, np.float64), 1e-12, 1))
    classes = logits.shape[1]
    counts = np.bincount(labels, minlength=classes)
    prior = np.full(classes, 1 / classes) if proportions is None else np.asarray(proportions, np.float64)
    offset = np.zeros(classes) if proportions is None else np.log(prior * classes)
    weights = (prior * classes / counts.clip(1))[labels]
    weights /= weights.sum()
    target = (np.eye(classes)[labels] * counts[labels, None] + 1) / (counts[labels, None] + classes) * prior
    target /= target.sum(axis=1, keepdims=True)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature) + offset
        top = scaled.max(axis=1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float(weights @ (total - (target * scaled).sum(axis=1)))

    # A result beyond one order of magnitude would only mean that the validation set is too easy.
    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.1), np.log(10)), method="bounded").x))


def scale_probabilities(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Return the softmax output (N, classes) of the logits divided by ``temperature``."""
    powered = np.clip(np.asarray(probabilities, np.float64), 1e-12, 1) ** (1 / temperature)
    return np.asarray(powered / powered.sum(axis=1, keepdims=True))


def build_in_temperature(model: keras.Model, temperature: float) -> None:
    """Divide the last Dense layer's kernel and bias, so that every artifact made from the model is calibrated."""
    last = model.layers[-1]
    last.set_weights([weight / temperature for weight in last.get_weights()])


def choose_threshold(positive: Probabilities, labels: Labels, sensitivity: float = TARGET_SENSITIVITY) -> float:
    """Choose the threshold with the best Youden index among those of at least the given sensitivity.

    Parameters
    ----------
    positive
        (N,) probability of the positive class, of images that were not trained on.
    labels
        (N,) 1 for positive, 0 for the others.
    sensitivity
        Minimum fraction of positives at or above the threshold, in (0, 1].

    Returns
    -------
    float in [0, 1]: the middle between two neighboring scores, with the widest gap if several are equally good, so
    that it does not depend on a single image.

    Raises
    ------
    DataError
        One of the two classes has no images.
    """
    if not (labels == 1).any() or not (labels == 0).any():
        raise DataError(
            "no threshold can be chosen: the validation images are all of one class", "Add images of the other class"
        )
    scores = np.unique(np.concatenate([[0.0], np.asarray(positive, np.float64), [1.0]]))
    candidates = (scores[1:] + scores[:-1]) / 2
    detected = 1 - np.searchsorted(np.sort(positive[labels == 1]), candidates) / (labels == 1).sum()
    cleared = np.searchsorted(np.sort(positive[labels == 0]), candidates) / (labels == 0).sum()
    youden = np.where(detected >= sensitivity - 1e-12, detected + cleared, -1.0)
    best = np.flatnonzero(youden >= youden.max() - 1e-12)
    widest = best[np.argmax(np.diff(scores)[best])]
    return float(candidates[widest])
