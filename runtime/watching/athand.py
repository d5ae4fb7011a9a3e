"""Which scan is at hand, noted on disk: so one that ends the program each time is found out, and not tried for ever.

A kill, a crash inside a decoder or too little memory leave the note behind; an orderly end does not.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from ..errors import OutputError

NOTE = ".at-hand.json"


class AtHand:
    """The note in an output folder. Not synced: it need not outlast the machine, only the program."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NOTE
        self._name, self._sha256, self._times = self._read()

    def is_suspect(self, name: str) -> bool:
        """Whether the program ended while a scan of this name was at hand: take the others first."""
        return self._times > 0 and name == self._name

    def begin(self, name: str, sha256: str) -> int:
        """Note a scan; returns how often in a row the program ended while it was at hand. Raises OutputError."""
        before = self._times if sha256 == self._sha256 else 0
        try:
            self._path.write_text(json.dumps([name, sha256, before + 1]), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{self._path}: cannot write ({error.strerror})", "Make room") from error
        return before

    def end(self) -> None:
        """The scan at hand did not end the program."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _read(self) -> tuple[str, str, int]:
        try:
            name, sha256, times = json.loads(self._path.read_bytes())
            return str(name), str(sha256), int(times)
        except (OSError, ValueError, TypeError):  # none, or one that was cut short
            return "", "", 0
