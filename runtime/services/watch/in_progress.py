"""Which scan is at hand, noted on disk: so one that ends the program each time is found out, and not tried for ever.

A kill, a crash inside a decoder or too little memory leave the scan noted; an answer or an orderly end takes it out.
There may be several such scans: each keeps its own count while the others are tried.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from mri_edge.errors import OutputError

NOTE = ".at-hand.json"


class AtHand:
    """The note in an output folder. Not synced: it need not outlast the machine, only the program."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NOTE
        self._ends = self._read()  # by hash: the scan's name, and how often the program ended with it

    def is_suspect(self, name: str) -> bool:
        """Whether the program ended while a scan of this name was at hand: take the others first."""
        return any(name == one for one, _ in self._ends.values())

    def begin(self, name: str, sha256: str) -> int:
        """Note a scan; returns how often in a row the program ended while it was at hand. Raises OutputError."""
        _, before = self._ends.get(sha256, (name, 0))
        try:
            self._write(self._ends | {sha256: (name, before + 1)})
        except OSError as error:
            raise OutputError(f"{self._path}: cannot write ({error.strerror})", "Make room") from error
        return before

    def end(self, sha256: str) -> None:
        """This scan did not end the program."""
        self._ends.pop(sha256, None)
        with suppress(OSError):
            if self._ends:
                self._write(self._ends)
            else:
                self._path.unlink(missing_ok=True)

    def _write(self, ends: dict[str, tuple[str, int]]) -> None:
        self._path.write_text(json.dumps(ends), encoding="utf-8")

    def _read(self) -> dict[str, tuple[str, int]]:
        try:
            noted = json.loads(self._path.read_bytes())
            return {sha256: (str(name), int(times)) for sha256, (name, times) in noted.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # none, or one that was cut short
            return {}
