"""Tells systemd that the service is ready, alive or stopping (``sd_notify``); silent where nobody listens."""

from __future__ import annotations

import os
from contextlib import suppress


def notify(state: str) -> None:
    """Send ``READY=1``, ``WATCHDOG=1``, ``STOPPING=1`` to the socket that systemd names; see sd_notify(3).

    A message to a socket whose queue is full, since nobody reads it, is dropped: scans are not kept waiting for it.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    import socket

    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.setblocking(False)
        end.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
