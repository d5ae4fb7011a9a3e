"""Write heatmaps of the leading slices of a series as color Secondary Captures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from mri_edge.bundles.manifest import Metric
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.heatmap.caption import font_of
from mri_edge.inference.heatmap.picture import draw_page
from mri_edge.inference.heatmap.series_pictures import explain_leading
from mri_edge.inference.prediction import Prediction
from mri_edge.inference.series import Ran, SeriesPrediction

from .objects import SERIES_DESCRIPTION, ResultObject, complete, finish
from .origin import Origin, Reference

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SERIES_NUMBER = 9002
_BANNER = (170, 20, 20)
_BANNER_HEIGHT = 34  # pixels


def captures(
    result: SeriesPrediction, origin: Origin, classifier: Classifier, score: Metric | None
) -> Iterator[ResultObject]:
    """Yield a capture for each leading slice, at most three. ``score`` is as for ``draw_page``."""
    for rank, (number, explained) in enumerate(explain_leading(result, classifier), 1):
        page = _page(explained, score)
        yield _capture(page, origin, origin.references[number], result.ran, rank)


def _page(explained: Prediction, score: Metric | None) -> Image.Image:
    """Draw a heatmap without the name of the file, which may identify the patient, below a banner."""
    if explained.pixels is None or explained.heatmap is None:
        raise ValueError("the slice was not explained")
    drawn = draw_page(explained.pixels, explained.heatmap, replace(explained, source=None), score)
    page = Image.new("RGB", (drawn.width, drawn.height + _BANNER_HEIGHT), _BANNER)
    page.paste(drawn, (0, _BANNER_HEIGHT))
    middle = drawn.width / 2, _BANNER_HEIGHT / 2
    ImageDraw.Draw(page).text(middle, SERIES_DESCRIPTION, fill="white", font=font_of(1.4), anchor="mm")
    return page


def _capture(page: Image.Image, origin: Origin, reference: Reference, ran: Ran, rank: int) -> ResultObject:
    """Describe a picture as the Secondary Capture Image IOD requires (PS3.3 A.8.1)."""
    from pydicom import Dataset

    image = Dataset()
    image.SOPClassUID = SECONDARY_CAPTURE
    image.Modality, image.ConversionType = "OT", "WSD"
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.Laterality = ""  # required and empty: the head is no paired part of the body
    image.PatientOrientation = ""
    if "BurnedInAnnotation" in origin.study:  # whether the scan shows what identifies the patient (PS3.3 C.7.6.1)
        image.BurnedInAnnotation = origin.study["BurnedInAnnotation"]
    image.DerivationDescription = "Slice beside the same slice with the regions that change the answer of a model"
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = reference.sop_class, reference.instance
    if reference.frame is not None:
        source.ReferencedFrameNumber = reference.frame
    image.SourceImageSequence = [source]
    pixels = np.asarray(page)
    image.Rows, image.Columns, image.SamplesPerPixel = *pixels.shape[:2], 3
    image.PhotometricInterpretation, image.PlanarConfiguration = "RGB", 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = pixels.tobytes() + bytes(pixels.size % 2)
    complete(image, origin, ran, "sc", series_number=_SERIES_NUMBER, instance_number=rank)
    return finish(image, f"sc-{origin.key[:16]}-{rank}.dcm")
