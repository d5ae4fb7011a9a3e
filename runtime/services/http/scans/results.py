"""Turn predictions into the JSON of an answer, with the pictures that a request asks for."""

from __future__ import annotations

import base64
import io
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from mri_edge.inference.classifier import Classifier
from mri_edge.inference.heatmap.caption import least_drawn
from mri_edge.inference.heatmap.picture import color_layer
from mri_edge.inference.heatmap.score import required_score
from mri_edge.inference.prediction import Failure, Prediction
from mri_edge.scans.frame import Pixels, gray_channel

_LONGEST_SIDE = 1024  # pixels of a picture; larger ones are reduced


@dataclass(frozen=True)
class Options:
    """The parameters of a request.

    Attributes
    ----------
    by
        What gets an answer.
    plane
        Which series are classified, if ``by`` is not "slice".
    heatmap, picture
        Whether the answer contains the heatmap, and the section of the frame that the network gets.
    index
        The only frame that is classified, or None for all.
    """

    by: Literal["slice", "series", "study"] = "slice"
    plane: Literal["axial", "any"] = "axial"
    heatmap: bool = False
    picture: bool = False
    index: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether a scan of one frame takes one run of the model."""
        return self.by == "slice" and not self.heatmap and self.index is None


def as_dict(result: Prediction | Failure, options: Options, classifier: Classifier) -> dict[str, Any]:
    """Return the object of ``predict --json``, with the pictures that the options ask for.

    ``picture`` is the section of the frame that the network gets, a PNG in base64. ``explanation`` holds an ``overlay``
    of the same size, a PNG with an alpha channel, or None if no region stands out; what it is about; and the measured
    ``score`` of such maps.
    """
    record = result.to_dict()
    if isinstance(result, Failure) or result.pixels is None:
        return record
    picture = section(result.pixels)
    if options.picture or options.heatmap:
        record["picture"] = png(picture)
    if options.heatmap and result.heatmap is not None:
        maximum = float(result.heatmap.max())
        least = least_drawn(maximum, result.hot_spot)
        score = required_score(classifier)
        record["explanation"] = {
            "label": result.explained,
            "overlay": png(color_layer(picture.size, result.heatmap, least)) if maximum >= least else None,
            "maximum": round(maximum, 3),
            "least_drawn": least,
            "score": None if score is None else asdict(score),
        }
    return record


def section(pixels: Pixels) -> Image.Image:
    """Return a picture of the section that the network gets, gray where it is gray."""
    gray = gray_channel(pixels)
    picture = Image.fromarray(np.ascontiguousarray(pixels) if gray is None else gray)
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return picture


def png(picture: Image.Image) -> str:
    """Return a picture as PNG in base64."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
