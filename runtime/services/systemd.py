"""Report to systemd that the service is ready, alive or stopping (``sd_notify``), if systemd started it."""

from __future__ import annotations

import os
import time
from contextlib import suppress


def notify(state: str) -> None:
    """Send ``READY=1``, ``WATCHDOG=1`` or ``STOPPING=1`` to the socket that systemd names; see sd_notify(3).

    A message is dropped if the socket's queue is full because nobody reads it: scans must not wait for that.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    import socket

    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)


class Heartbeat:
    """Reports to systemd that the service is alive, at most once a second, each time it is called."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self) -> None:
        """Report it."""
        now = time.monotonic()
        if now - self._last >= 1:
            self._last = now
            notify("WATCHDOG=1")
