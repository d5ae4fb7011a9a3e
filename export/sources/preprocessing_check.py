"""Check that a stated preprocessing suits the model, by comparing its accuracy with that of common alternatives."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.authoring.intervals import Interval, wilson_interval
from mri_edge.export.calibration.images import draw, read_batches
from mri_edge.export.parity.comparison import Flags, mcnemar
from mri_edge.scans.preprocessing import Preprocessing

from .keras_model import answers

_PICTURES = 64  # the same number of each label
_LEVEL = 0.05
_BGR_MEANS = (103.939, 116.779, 123.68)
# The preprocessings of Keras' own image classifiers, each in both channel orders.
_COMMON: tuple[dict[str, Any], ...] = (
    {"scale": 1.0},
    {"scale": 1 / 255},
    {"scale": 1 / 127.5, "mean": (1.0, 1.0, 1.0)},
    {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "deviation": (0.229, 0.224, 0.225)},
    {"scale": 1.0, "mean": _BGR_MEANS, "channel_order": "BGR"},
    {"scale": 1.0, "channel_order": "BGR"},
    {"scale": 1 / 255, "channel_order": "BGR"},
    {"scale": 1 / 127.5, "mean": (1.0, 1.0, 1.0), "channel_order": "BGR"},
    {"scale": 1.0, "mean": _BGR_MEANS[::-1]},
)


def check_preprocessing(
    model: Any, located: list[tuple[Path, int]], preprocessing: Preprocessing, seed: int
) -> str | None:
    """Return a warning if the stated preprocessing seems wrong, or None.

    Parameters
    ----------
    located
        Pictures with the index of their label. Up to 64 are drawn with ``seed``, the same number of each label.

    Raises
    ------
    DataError
        A picture cannot be read.
    """
    classes = sorted({label for _, label in located})
    each = min(_PICTURES // len(classes), *(sum(label == index for _, label in located) for index in classes))
    drawn = [
        (path, label)
        for label in classes
        for path in draw([pair for pair in located if pair[1] == label], max(1, each), seed)
    ]
    pixels = list(read_batches([path for path, _ in drawn], preprocessing))
    labels = np.array([label for _, label in drawn])

    def is_right(candidate: Preprocessing) -> Flags:
        return np.asarray(answers(model, pixels, candidate).argmax(axis=1) == labels)

    stated = is_right(preprocessing)
    geometry = {name: getattr(preprocessing, name) for name in ("height", "width", "framing", "resize")}
    others = [Preprocessing(**geometry, **fields) for fields in _COMMON]
    if all((batch == batch[..., :1]).all() for batch in pixels):  # gray: the channel order matters only with means
        others = [other for other in others if other.channel_order == "RGB" or any(other.mean)]
    others = [other for other in others if other != preprocessing]
    chance = 1 / len(classes)
    best, flags = preprocessing, stated
    # With fewer mistakes no alternative can be significantly better.
    if np.sum(~stated) > np.log2(2 * len(others) / _LEVEL):
        for other in others:
            right = is_right(other)
            better = right.sum() > flags.sum() and mcnemar(stated, right) < _LEVEL / len(others)
            if better and _accuracy(right).low > chance:
                best, flags = other, right
    guessed = _accuracy(stated).low <= chance
    if best is preprocessing and not guessed:
        return None
    warning = f"with the stated preprocessing the model labels {_as_text(stated)} of {len(drawn)} pictures correctly"
    if guessed:
        warning += f", which may be no better than guessing ({chance:.2f})"
    if best is preprocessing:
        return f"{warning}, and none of {len(others)} common ones is better. Are --labels in the order of its outputs?"
    return (
        f"{warning}; with --preprocessing '{_as_option(best)}', the best of {len(others)} common ones, it labels "
        f"{_as_text(flags)}"
    )


def _accuracy(right: Flags) -> Interval:
    return wilson_interval(int(right.sum()), len(right))


def _as_text(right: Flags) -> str:
    accuracy = _accuracy(right)
    return f"{accuracy.value:.2f} ({accuracy.low:.2f}–{accuracy.high:.2f})"


def _as_option(preprocessing: Preprocessing) -> str:
    """The JSON object for ``--preprocessing``: the size, and the values that differ from the defaults."""
    given, default = dataclasses.asdict(preprocessing), dataclasses.asdict(Preprocessing())
    kept = {name: value for name, value in given.items() if name in ("height", "width") or value != default[name]}
    return json.dumps(kept)
