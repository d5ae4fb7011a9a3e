"""Recognize DICOM by the first bytes of a file. It imports next to nothing, because it looks at every kind of file."""

from __future__ import annotations

import re
import struct

MAGIC_OFFSET, MAGIC = 128, b"DICM"  # PS3.10 7.1
_DIRECTORY = re.compile(rb"1\.2\.840\.10008\.1\.3\.10(?![0-9.])")  # the SOP class of a DICOMDIR, PS3.10 8.6
_MAX_LENGTH = 1 << 16  # bytes of one of the first elements


def is_directory(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a DICOMDIR: a list of files, without pixels."""
    return has_magic(head) and _DIRECTORY.search(head, MAGIC_OFFSET) is not None


def has_magic(head: bytes) -> bool:
    """Whether a file begins as PS3.10 demands."""
    return head[MAGIC_OFFSET : MAGIC_OFFSET + 4] == MAGIC


def looks_like_dataset(head: bytes) -> bool:
    """Whether the beginning of a file is a DICOM dataset without the preamble, as some old programs write it.

    The first three elements must be of the groups 0000, 0002 or 0008, in ascending order, and have plausible lengths.
    """
    return any(_first_elements(head, order, explicit) for order in "<>" for explicit in (True, False))


def _first_elements(head: bytes, order: str, explicit: bool) -> bool:
    position, last, found = 0, -1, 0
    while found < 3:
        if position + 12 > len(head):
            return found >= 2 and position <= len(head)
        group, number = struct.unpack_from(f"{order}HH", head, position)
        tag = group << 16 | number
        if group not in (0, 2, 8) or tag <= last or (last < 0 and number > 0x20):
            return False
        if explicit:
            representation = head[position + 4 : position + 6]
            if not (representation.isalpha() and representation.isupper()):
                return False
            if representation in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR"):
                length, size = struct.unpack_from(f"{order}I", head, position + 8)[0], 12
            else:
                length, size = struct.unpack_from(f"{order}H", head, position + 6)[0], 8
        else:
            length, size = struct.unpack_from(f"{order}I", head, position + 4)[0], 8
        if length > len(head):
            return found >= 2 and length <= _MAX_LENGTH
        position, last, found = position + size + length, tag, found + 1
    return True
