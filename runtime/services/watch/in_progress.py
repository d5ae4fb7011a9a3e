"""Record on disk which scan is being classified, so that a scan that crashes the program is not tried forever.

After a kill, a crash inside a decoder or an out-of-memory kill the record of the scan remains. A result or an orderly
end removes it. Several scans may be recorded: each has its own count while the others are tried.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from mri_edge.errors import OutputError

RECORD = ".at-hand.json"


class InProgress:
    """The record in an output folder. It is not synced: it must survive the program, not the machine."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORD
        self._crashes = self._read()  # by hash: the scan's name, and how often the program ended during it

    def is_suspect(self, name: str) -> bool:
        """Whether the program ended during a scan of this name. Others should be processed first."""
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
        """Remove a scan: it did not end the program."""
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
