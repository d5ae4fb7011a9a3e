"""Read a model of several files from the ZIP archive that makes it one artifact."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

from mri_edge.errors import EngineError, first_line


def read_parts(name: str, content: bytes, expected: Sequence[str]) -> list[bytes]:
    """Return the members of an archive, which must be exactly ``expected``, in this order and uncompressed.

    A compressed member could unpack to more than memory holds.

    Raises
    ------
    EngineError
        ``content`` is something else; ``name`` names it in the message.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if [member.filename for member in members] != [*expected] or not stored:
                raise EngineError(
                    f"{name}: must contain {' and '.join(expected)}, uncompressed", "Export the model again"
                )
            return [archive.read(member) for member in members]
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise EngineError(
            f"{name}: not a readable ZIP archive: {first_line(error)}", "Export the model again"
        ) from error


def write_parts(parts: dict[str, bytes]) -> bytes:
    """Return an archive with these members, uncompressed and dated 1980, so that equal models give equal files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(name), part)
    return content.getvalue()
