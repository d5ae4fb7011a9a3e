"""The caller's choices for reading scans, which reach every reader as one object."""

from __future__ import annotations

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
        a Window.
    any_modality
        Also read DICOM images that are not MR.
    fallback
        The window where percentiles would be used, such as one over a whole series. None: percentiles of the file.

    Raises
    ------
    UsageError
        The window is none of these, or its width is less than 1.
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
    if not window.is_valid():
        raise UsageError(f"the width of a window must be at least 1. Received: {window.width:g}")
    return window
