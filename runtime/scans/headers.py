"""Read what the headers of scan files say about their slices, without their pixels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from mri_edge.errors import InputError

from . import readers
from .files import special_file_kind
from .options import DEFAULT, ReadOptions
from .series import SliceFacts


def slice_facts(
    sources: Iterable[str | InputError], options: ReadOptions = DEFAULT
) -> Iterator[SliceFacts | InputError]:
    """Yield the facts of each frame of each file, and an InputError for a file of which no header can be read.

    A picture has no header of this kind, so it is one slice about which nothing is known; it is not opened. Errors
    among the sources are yielded as they are.
    """
    for source in sources:
        if isinstance(source, InputError):
            yield source
            continue
        read = getattr(readers.reader_of(source), "slice_facts", None)
        if read is None or special_file_kind(source):  # a pipe can be read only once
            missing = InputError(f"{source}: no such file", code="missing", source=source)
            yield SliceFacts(source) if os.path.lexists(source) else missing
            continue
        try:
            yield from read(source, options)
        except InputError as error:
            error.source = source
            yield error
