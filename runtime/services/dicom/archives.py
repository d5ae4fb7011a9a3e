"""Open the archives that the user named, and pass on their reports on storage commitment."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Any

from .addresses import Address, DicomAddress
from .cstore import CStoreArchive
from .delivery import Archive
from .stow import StowArchive

_UNKNOWN_TRANSACTION = 0x0110


def open_archives(
    addresses: Sequence[Address], *, aet: str, tls: ssl.SSLContext, commit: bool, timeout_s: float
) -> list[Archive]:
    """Return an archive for each address. Nothing is connected yet.

    Parameters
    ----------
    aet
        AE title of the node.
    tls
        Settings for addresses with TLS.
    commit
        Whether the archives are asked to commit themselves to the storage.
    timeout_s
        Longest time to wait for an archive.
    """
    return [
        CStoreArchive(address, aet, tls=tls if address.tls else None, commit=commit, timeout_s=timeout_s)
        if isinstance(address, DicomAddress)
        else StowArchive(address, tls=tls, timeout_s=timeout_s)
        for address in addresses
    ]


def commitments(archives: Sequence[Archive]) -> Callable[[Any], tuple[int, None]]:
    """Return a handler of N-EVENT-REPORT that finds the archive to which a report belongs."""

    def receive(event: Any) -> tuple[int, None]:
        for archive in archives:
            if isinstance(archive, CStoreArchive):
                status, nothing = archive.receive(event)
                if status == 0:
                    return status, nothing
        return _UNKNOWN_TRANSACTION, None

    return receive
