"""Write one line for each request and each event on stderr, as text or JSON, without anything that names a patient.

A line holds the pattern of the path and never the path itself, no query, no address, no file name and no message of a
library: all of these may contain what a client or a scan put there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import traceback
import warnings
from functools import lru_cache
from typing import Any, Literal, TextIO

Format = Literal["text", "json"]

_FLUSH_S = 0.1  # lines of requests are written this often: a system call for each would slow the server down
_QUIET = {"/v2/health/live", "/v2/health/ready", "/metrics"}  # asked every few seconds


class Log:
    """Writes lines. ``request`` collects them until ``flush``, all others appear at once."""

    def __init__(self, form: Format = "text", stream: TextIO | None = None) -> None:
        self._form = form
        self._stream = stream
        self._lines: list[str] = []
        self._flushing: asyncio.TimerHandle | None = None

    def event(self, level: str, message: str, **facts: Any) -> None:
        """Write an event of the server."""
        self._lines.append(self._line({"level": level, "message": message, **facts}, message))
        self.flush()

    def request(self, method: str, route: str, status: int, seconds: float, **facts: Any) -> None:
        """Write a request. ``facts`` without a value are left out. Status 0: the client disconnected."""
        if route in _QUIET and status == 200:
            return
        level = "error" if status >= 500 else "warning" if status >= 400 else "info"
        more = {name: value for name, value in facts.items() if value}
        if self._form == "json":
            record = {"level": level, "method": method, "route": route, "status": status, "ms": round(seconds * 1e3, 3)}
            self._lines.append(self._line(record | more, ""))
        else:
            words = "".join([f" {name}={value}" for name, value in more.items()])
            text = f"{status} {method} {route} ms={seconds * 1e3:.3f}{words}"
            self._lines.append(self._line({"level": level}, text))
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)

    def failure(self, error: BaseException) -> None:
        """Write where an unexpected exception was raised. Its message may quote a scan, so it is left out."""
        places = traceback.extract_tb(error.__traceback__)
        where = " < ".join(f"{place.name} ({place.filename}:{place.lineno})" for place in reversed(places[-4:]))
        self.event("error", f"internal error: {type(error).__name__} in {where}")

    def flush(self) -> None:
        """Write the lines that were collected."""
        self._flushing = None
        lines, self._lines = self._lines, []
        stream = self._stream or sys.stderr
        if lines and stream is not None:
            try:
                stream.write("".join(lines))
                stream.flush()
            except OSError:  # a full disk or a closed pipe under the log must not end the server
                pass

    def _line(self, record: dict[str, Any], text: str) -> str:
        seconds, fraction = divmod(time.time(), 1)
        now = f"{_second(int(seconds))}.{int(fraction * 1000):03}Z"
        if self._form == "json":
            return json.dumps({"time": now, **record}) + "\n"
        return f"{now} {record['level']} {text if text.isprintable() else ascii(text)[1:-1]}\n"

    def take_over(self) -> None:
        """Write messages of mri-edge and of uvicorn too, and silence other libraries, which quote values of scans."""
        handler = _Handler(self)
        for name in ("mri_edge", "uvicorn.error"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [handler], False
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        logging.getLogger().handlers = [logging.NullHandler()]
        warnings.simplefilter("ignore")


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class _Handler(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._log.failure(record.exc_info[1])
        else:
            self._log.event(record.levelname.lower(), record.getMessage())
