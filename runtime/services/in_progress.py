"""Remember what a service is classifying, so that a scan or series that crashes the program is not tried forever."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from mri_edge.errors import InputError, OutputError

# The name is kept from earlier releases.
IN_PROGRESS = ".at-hand.json"
MAX_CRASHES = 3
"""How often the program may end during a scan or series before it is given up."""


class InProgress:
    """The record of what is being classified, so that a scan that crashes the program is not tried forever.

    After a kill, a crash inside a decoder or an out-of-memory kill the record of the scan remains. A result or an
    orderly end removes it. Several scans may be recorded, each with its own count. The file in the output folder is not
    synced, because it must survive the program, not the machine.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / IN_PROGRESS
        self._crashes = self._read()  # hash of a scan -> its name, and how often the program ended during it

    def is_suspect(self, name: str) -> bool:
        """Whether the program ended during a scan of this name. Other scans should be processed first."""
        return any(name == suspect for suspect, _ in self._crashes.values())

    def begin(self, name: str, sha256: str) -> int:
        """Record a scan. Returns how often in a row the program ended during it. Raises OutputError."""
        _, crashes = self._crashes.get(sha256, (name, 0))
        try:
            self._write(self._crashes | {sha256: (name, crashes + 1)})
        except OSError as error:
            raise OutputError(f"{self._path}: cannot write ({error.strerror})", "Free some space") from error
        return crashes

    def end(self, sha256: str) -> None:
        """Remove a scan, because it did not end the program."""
        self._crashes.pop(sha256, None)
        with suppress(OSError):
            if self._crashes:
                self._write(self._crashes)
            else:
                self._path.unlink(missing_ok=True)

    def _write(self, crashes: dict[str, tuple[str, int]]) -> None:
        self._path.write_text(json.dumps(crashes), encoding="utf-8")

    def _read(self) -> dict[str, tuple[str, int]]:
        try:
            record = json.loads(self._path.read_bytes())
            return {sha256: (str(name), int(crashes)) for sha256, (name, crashes) in record.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # there is none, or it was cut short
            return {}


def crashed(name: str, kind: str, crashes: int) -> InputError:
    """Return the error of a scan or series (``kind``) that was given up."""
    return InputError(
        f"{name}: the program ended {crashes} times in a row while this {kind} was in progress",
        "It may crash a decoder or need more memory than there is; see the system's log",
        code="crashed",
        value=crashes,
        limit=MAX_CRASHES,
    )
