"""Fit temperature and threshold to the scans of one site, and judge both on scans that did not choose them.

The figures to expect are cross-fitted: temperature and threshold are chosen on all folds but one and judged on that
one, fold by fold. Judged on the scans that chose it, a threshold looks better than it is, most of all with few scans.
No fold divides a group of near-duplicates or a patient, and a group counts as one scan in every interval. That the
written threshold is another than those that were judged widens the intervals; see ``threshold_choice``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from mri_edge.bundles.manifest import Metric
from mri_edge.errors import DataError, GateError
from mri_edge.inference.prediction import decide, rescale
from mri_edge.train.data.roles import by_group

from .calibration import choose_threshold, fit_temperature
from .intervals import Figures, auc, independent_groups, wilson_bounds
from .threshold_choice import METHOD, choice_errors

FOLDS = 5
_Z = float(norm.ppf(0.975))
_WIDEST_REFUSED = 0.5  # an interval wider than this says nothing: it holds both a useful test and a useless one
_WIDEST_ADVISED = 0.2
_COUNTED = "near-duplicates, and scans of one patient, count as one"

Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Answers:
    """What an artifact answered to labelled scans.

    Attributes
    ----------
    probabilities
        float32 (N, classes), as the artifact gives them, without a recalibration.
    label
        int (N,), label indices.
    group
        int (N,): scans of one group are near-duplicates, or of one patient.
    """

    probabilities: NDArray[np.float32]
    label: Indices
    group: Indices

    def at(self, rows: Indices) -> Answers:
        """Return the answers to some of the scans."""
        return Answers(self.probabilities[rows], self.label[rows], self.group[rows])

    def independent(self, rows: Flags) -> float:
        """Return how many independent scans the chosen ones, bool (N,), are worth if a group counts as one scan."""
        return independent_groups(np.unique(self.group[rows], return_counts=True)[1])


@dataclass(frozen=True)
class Goal:
    """What a recalibration aims at.

    ``prevalence`` is the proportion of positives for which the probabilities are calibrated; None weights each label
    equally. ``sensitivity`` is the least one on the scans that choose the threshold. With more than two labels there
    is no threshold and no prevalence.
    """

    positive: int
    sensitivity: float
    prevalence: float | None = None

    def proportions(self, classes: int) -> list[float]:
        """Return the proportion of each class."""
        if self.prevalence is None:
            return [1 / classes] * classes
        return [self.prevalence if index == self.positive else 1 - self.prevalence for index in range(classes)]

    @property
    def log_odds_offset(self) -> float:
        """The log odds of the prevalence: 0 for equal labels."""
        return 0.0 if self.prevalence is None else math.log(self.prevalence) - math.log1p(-self.prevalence)


@dataclass(frozen=True)
class Fit:
    """A temperature, and a threshold on the recalibrated probabilities; None with more than two labels."""

    temperature: float
    threshold: float | None


@dataclass(frozen=True)
class Recalibrated:
    """The fit to all scans, those of the folds, and figures.

    ``expected`` are cross-fitted, ``before`` are those of the answers as they were. ``log_loss`` of each is weighted
    by the prevalence.
    """

    fit: Fit
    folds: tuple[Fit, ...]
    expected: dict[str, Metric]
    before: dict[str, Metric]
    log_loss: float
    log_loss_before: float
    independent: tuple[int, ...]
    warnings: tuple[str, ...]


def recalibrate(answers: Answers, labels: Sequence[str], goal: Goal, threshold: float | None) -> Recalibrated:
    """Fit temperature and threshold, and measure what to expect of them.

    Parameters
    ----------
    labels
        Names of the labels, for messages.
    threshold
        The one of the answers as they were.

    Raises
    ------
    DataError
        There are too few independent scans of a label; see ``fewest``.
    GateError
        The answers cannot be distinguished from chance.
    """
    classes, binary = len(labels), len(labels) == 2
    independent = tuple(math.floor(answers.independent(answers.label == index) + 1e-9) for index in range(classes))
    unequal = ", and groups of unequal size as fewer: give each patient about as many scans"
    require_enough(independent, labels, goal, _COUNTED + unequal)
    whole = fit(answers, goal)
    held_out = _cross_fit(answers, goal)
    before = decide(answers.probabilities, goal.positive, threshold)
    if binary:
        is_positive = answers.label == goal.positive
        score = answers.probabilities[:, goal.positive].astype(np.float64)
        area = auc(is_positive, score, answers.group)
        if area.low <= 0.5:
            problem = (
                "the answers to these scans are the opposite of their labels"
                if area.high < 0.5
                else "the answers to these scans cannot be distinguished from chance"
            )
            raise GateError(
                f"{problem}: AUC {area.value:.3f} ({area.low:.3f} to {area.high:.3f}). Nothing was written",
                "Check that the folders have the right labels; a threshold does not help here",
            )
        errors = choice_errors(is_positive, score, answers.group, held_out.fold, goal.sensitivity)
        expected = {"auc": area, **_rates(answers, held_out.called, goal, errors)}
        known = {"auc": area, **_rates(answers, before, goal)}
    else:
        expected = {"accuracy": _accuracy(answers, decide(answers.probabilities, goal.positive, None))}
        known = {"accuracy": _accuracy(answers, before)}
    log_loss = _log_loss(held_out.probabilities, answers.label, goal)
    log_loss_before = _log_loss(answers.probabilities, answers.label, goal)
    warnings = [*_few(independent, labels, goal)]
    if log_loss >= log_loss_before:
        warnings.append(
            f"The temperature does not improve the probabilities of scans that did not choose it: "
            f"log loss {log_loss_before:.3f} before, {log_loss:.3f} after."
        )
    if binary and expected["sensitivity"].high < goal.sensitivity:
        warnings.append(
            f"A sensitivity of {goal.sensitivity:g} is not to be expected: {expected['sensitivity'].high:.3f} at most."
        )
    return Recalibrated(whole, held_out.fits, expected, known, log_loss, log_loss_before, independent, tuple(warnings))


def fit(answers: Answers, goal: Goal) -> Fit:
    """Choose the temperature, then the threshold on the probabilities that follow from it."""
    classes = answers.probabilities.shape[1]
    temperature = fit_temperature(answers.probabilities, answers.label, proportions=goal.proportions(classes))
    if classes > 2:
        return Fit(temperature, None)
    scores = rescale(answers.probabilities, temperature, goal.log_odds_offset, goal.positive)[:, goal.positive]
    return Fit(temperature, choose_threshold(scores, (answers.label == goal.positive).astype(int), goal.sensitivity))


def fewest(sensitivity: float) -> tuple[int, int]:
    """Return how many independent positive and negative scans a recalibration needs at least.

    With fewer than 12 of a label Wilson's 95% interval may be wider than one half: it is widest where half of the
    scans are right, there z / sqrt(n + z^2), which is at most 1/2 from n = 3 z^2 = 11.5 on. It then holds both a useful
    test and a useless one. And at least 1 / (1 - sensitivity) positives: with fewer a threshold of that
    sensitivity on the scans may miss none, so it would depend on the single positive with the lowest score.
    """
    negatives = math.ceil(_Z**2 * (1 / _WIDEST_REFUSED**2 - 1))
    return max(negatives, math.ceil(1 / (1 - sensitivity) - 1e-9)), negatives


def advised(sensitivity: float) -> tuple[int, int]:
    """Return how many independent positive and negative scans a recalibration should have.

    If all n positives are found, Wilson's 95% interval starts at n / (n + z^2): only from n = z^2 s / (1 - s) on can
    it show a sensitivity of s, for 0.95 from 73 on (without an error in any; the rule of three gives 59 for a
    one-sided limit). From 24 z^2 = 93 negatives on, the interval of the specificity is at most 0.2 wide.
    """
    return (
        math.ceil(_Z**2 * sensitivity / (1 - sensitivity) - 1e-9),
        math.ceil(_Z**2 * (1 / _WIDEST_ADVISED**2 - 1)),
    )


def predictive_value(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """Return positive and negative predictive value by Bayes' rule; 0 where no scan gets that answer."""
    right = prevalence * sensitivity, (1 - prevalence) * specificity
    called = right[0] + (1 - prevalence) * (1 - specificity), right[1] + prevalence * (1 - sensitivity)
    return right[0] / called[0] if called[0] else 0.0, right[1] / called[1] if called[1] else 0.0


def require_enough(independent: Sequence[int], labels: Sequence[str], goal: Goal, counted: str = _COUNTED) -> None:
    """Raise DataError if a label has fewer ``independent`` scans, a number per label, than ``fewest`` says.

    ``counted`` tells the user how they were counted.
    """
    positives, negatives = fewest(goal.sensitivity)
    for index, (label, count) in enumerate(zip(labels, independent, strict=True)):
        needed = positives if index == goal.positive and len(labels) == 2 else negatives
        if count < needed:
            raise DataError(
                f"{label!r} has {count} independent scans, too few: an interval would say nothing",
                f"At least {needed} are needed; {counted}",
            )


def _few(independent: Sequence[int], labels: Sequence[str], goal: Goal) -> list[str]:
    if len(labels) > 2:
        return []
    positives, negatives = advised(goal.sensitivity)
    found, cleared = independent[goal.positive], independent[1 - goal.positive]
    warnings = []
    if found < positives:
        lowest = wilson_bounds(1, found)[0]
        warnings.append(
            f"Few scans: {labels[goal.positive]!r} has {found} independent ones. Even if all were found, the "
            f"sensitivity could be {lowest:.2f}; {positives} are needed to show {goal.sensitivity:g}."
        )
    if cleared < negatives:
        warnings.append(
            f"Few scans: {labels[1 - goal.positive]!r} has {cleared} independent ones; "
            f"{negatives} are needed for a specificity to within 0.1."
        )
    return warnings


@dataclass(frozen=True)
class _CrossFitted:
    """The fit of each fold; for each scan (N,) its fold, and the label and probabilities by the other folds' fit."""

    fits: tuple[Fit, ...]
    fold: Indices
    called: Indices
    probabilities: NDArray[np.float32]


def _cross_fit(answers: Answers, goal: Goal) -> _CrossFitted:
    scans = np.arange(len(answers.label))
    fold, called = np.zeros(len(scans), np.intp), np.zeros(len(scans), np.intp)
    probabilities = np.zeros_like(answers.probabilities)
    fits = []
    for number, held in enumerate(by_group(answers.label, answers.group, FOLDS)):
        chosen = fit(answers.at(np.setdiff1d(scans, held)), goal)
        probabilities[held] = rescale(
            answers.probabilities[held], chosen.temperature, goal.log_odds_offset, goal.positive
        )
        called[held] = decide(probabilities[held], goal.positive, chosen.threshold)
        fold[held] = number
        fits.append(chosen)
    return _CrossFitted(tuple(fits), fold, called, probabilities)


def _rates(answers: Answers, called: Indices, goal: Goal, errors: Figures | None = None) -> dict[str, Metric]:
    """Return sensitivity and specificity, and with a prevalence the predictive values that follow from them.

    ``errors`` are those of ``choice_errors``, for a threshold that these scans chose. The limits of a predictive value
    are at the limits of both fractions, each with 97.5% confidence: by Bonferroni's inequality both hold with 95%.
    They are somewhat too wide.
    """
    is_positive = answers.label == goal.positive
    right = called == answers.label
    rows = {"sensitivity": is_positive, "specificity": ~is_positive}
    values = {name: float(right[kind].mean()) for name, kind in rows.items()}

    def limits(name: str, confidence: float = 0.95) -> tuple[float, float]:
        low, high = wilson_bounds(values[name], answers.independent(rows[name]), confidence)
        if errors is not None:
            tail = (1 - confidence) / 2
            lowest, highest = values[name] + np.quantile(errors[name], (tail, 1 - tail))
            low, high = min(low, max(float(lowest), 0.0)), max(high, min(float(highest), 1.0))
        return low, high

    found = {}
    for name, kind in rows.items():
        method = _method(answers.independent(kind)) + (f"; widened by {METHOD}" if errors is not None else "")
        found[name] = Metric(values[name], *limits(name), int(kind.sum()), method)
    if goal.prevalence is not None:
        found_limits, cleared_limits = (limits(name, 0.975) for name in rows)
        points = predictive_value(values["sensitivity"], values["specificity"], goal.prevalence)
        low = predictive_value(found_limits[0], cleared_limits[0], goal.prevalence)
        high = predictive_value(found_limits[1], cleared_limits[1], goal.prevalence)
        method = (
            f"by Bayes' rule for a prevalence of {goal.prevalence:g}, from sensitivity and specificity and limits of "
            "both with 97.5% (Bonferroni)"
        )
        for index, name in enumerate(("precision", "negative_predictive_value")):
            found[name] = Metric(points[index], low[index], high[index], len(answers.label), method)
    return found


def _accuracy(answers: Answers, called: Indices) -> Metric:
    right = called == answers.label
    independent = answers.independent(np.ones(len(right), bool))
    value = float(right.mean())
    return Metric(value, *wilson_bounds(value, independent), len(right), _method(independent))


def _method(independent: float) -> str:
    return f"Wilson score interval (Wilson 1927) of {independent:.0f} independent scans"


def _log_loss(probabilities: NDArray[np.float32], label: Indices, goal: Goal) -> float:
    """Return the mean negative log likelihood, with each class weighted by its proportion."""
    proportions = np.array(goal.proportions(probabilities.shape[1]))
    weights = (proportions / np.bincount(label, minlength=len(proportions)))[label]
    own = np.clip(probabilities[np.arange(len(label)), label].astype(np.float64), 1e-12, 1)
    return float(-(weights * np.log(own)).sum())
