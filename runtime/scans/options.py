"""The caller's choices for reading scans, which reach every reader as one object."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mri_edge.errors import UsageError
from mri_edge.records import dataclass

if TYPE_CHECKING:
    from .intensity import Window  # not imported at run time: a JPEG needs none of it

_NAMED = ("file", "auto")


@dataclass(frozen=True)
class ReadOptions:
    """How the values of DICOM and NIfTI become pictures. It does not affect files that hold pictures already.

    Attributes
    ----------
    window
        ``"file"``: the window in the file or, if it has none that shows anything, percentiles of the values.
        ``"auto"``: always percentiles. ``"CENTER,WIDTH"`` or a Window: this one, in rescaled units. Text is replaced by
        a Window. NIfTI is shown with LINEAR_EXACT in place of LINEAR. A DICOM file is refused if the window is LINEAR
        and its width is less than 1.
    any_modality
        Also read DICOM images that are not MR.
    fallback
        The window where percentiles would be used, such as one over a whole series. None: percentiles of the file.

    Raises
    ------
    UsageError
        The window is none of these, its center is not finite, or its width is not a finite number above 0.
    """

    window: str | Window = "file"
    any_modality: bool = False
    fallback: Window | None = None

    def __post_init__(self) -> None:
        if self.window not in _NAMED:
            object.__setattr__(self, "window", _as_window(self.window))

    @property
    def window_name(self) -> str:
        """The window as ``--window`` takes it: ``"file"``, ``"auto"`` or ``"500,1000"``."""
        if isinstance(self.window, str):
            return self.window
        return ",".join(f"{value:.17g}" for value in (self.window.center, self.window.width))


DEFAULT = ReadOptions()


def _as_window(value: str | Window) -> Window:
    from .intensity import Window

    window: Window | None = None
    if isinstance(value, Window):
        window = value
    else:
        center, _, width = value.partition(",")
        try:
            window = Window(float(center), float(width), origin="option")
        except ValueError:
            raise UsageError(
                f"a window must be file, auto or CENTER,WIDTH. Received: {value!r}", "For example: 500,1000"
            ) from None
    if not math.isfinite(window.center):
        raise UsageError(f"the center of a window must be finite. Received: {window.center:g}")
    if not (math.isfinite(window.width) and window.width > 0):
        raise UsageError(f"the width of a window must be finite and above 0. Received: {window.width:g}")
    return window
