"""Choose one window for all slices of a series whose files have none, so that its brightness does not change."""

from __future__ import annotations

from dataclasses import replace

from .options import ReadOptions
from .series import Series


def options_for(series: Series, options: ReadOptions) -> ReadOptions:
    """Return the options for reading the slices of a series: with a window over all of them where one is missing.

    This reads up to 64 slices. It does so only for DICOM files of one frame, because the reader of a file with several
    frames takes its percentiles over all of them, and only where some file has no window or the caller wants none.
    """
    several = len(series.slices) > 1 and all(facts.kind == "dicom" and facts.count == 1 for facts in series.slices)
    missing = options.window == "auto" or (
        options.window == "file" and any(facts.window is None and not facts.has_table for facts in series.slices)
    )
    if not several or not missing or options.fallback is not None:
        return options
    from .readers.dicom import percentiles_over

    return replace(options, fallback=percentiles_over([facts.source for facts in series.slices], options))
