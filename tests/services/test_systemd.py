"""Notifying systemd never blocks, even if nobody reads the socket."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd is Linux's")
def test_a_socket_that_nobody_reads_does_not_block(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unread:
        unread.bind(str(tmp_path / "notify"))
        # The kernel holds some ten to some hundred messages before it lets the next one wait.
        program = "from mri_edge.services.systemd import notify\nfor _ in range(5000): notify('WATCHDOG=1')"
        subprocess.run(
            [sys.executable, "-c", program], env={"NOTIFY_SOCKET": str(tmp_path / "notify")}, check=True, timeout=30
        )
        assert unread.recv(100) == b"WATCHDOG=1"
