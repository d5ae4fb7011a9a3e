"""Send answers by STOW-RS, the store of DICOMweb (PS3.18 10.5)."""

from __future__ import annotations

import errno
import json
import os
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from mri_edge.errors import UsageError

from .addresses import WebAddress
from .answers import Answer
from .delivery import Connection, Delivery, Refused, Unreachable

AUTHORIZATION = "MRI_EDGE_STOW_AUTHORIZATION"
"""Environment variable with the value of the header ``Authorization``, such as ``Bearer TOKEN``."""
_MAX_RESPONSE = 1 << 20  # bytes
_REFERENCED, _FAILED, _INSTANCE = "00081199", "00081198", "00081155"
_REASON = "00081197"
# The archive refuses these objects; other errors concern every answer.
_OF_THE_OBJECTS = {400, 413, 415, 422}
_UNAUTHORIZED = {401, 403}
_CONFLICT = 409  # nothing was stored, and the response says why (PS3.18 10.5.3)
# The archive has an object with this identifier, which is ours, because identifiers follow from the content: the reason
# in DICOM (PS3.7 C.5.11), and that of Azure's DICOM service.
_DUPLICATE = {0x0111, 45070}


class StowArchive:
    """An archive that takes STOW-RS.

    Objects identify a patient, so they go to the address that was named and to no other: no redirection is followed,
    and no proxy of the environment is used.

    Parameters
    ----------
    tls
        Settings for https.
    timeout_s
        Longest time for the connection, for the request and for the response, each as a whole.

    Raises
    ------
    UsageError
        The value of the environment variable ``AUTHORIZATION`` cannot be a header.
    """

    def __init__(self, address: WebAddress, *, tls: ssl.SSLContext | None = None, timeout_s: float = 60.0) -> None:
        self.name = str(address)
        self._timeout_s = timeout_s
        self._tls = tls
        self._authorization = os.environ.get(AUTHORIZATION, "").strip()  # a token from a file ends in a line break
        if not (self._authorization.isascii() and self._authorization.isprintable()):
            raise UsageError(
                f"{AUTHORIZATION} contains characters that no header may have",
                "Set it to a value such as 'Bearer TOKEN'",
            )

    def start(self, delivery: Delivery, waiting: Iterator[Answer]) -> None:
        """Do nothing: there are no commitments."""

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Return itself: each answer is one request."""
        yield self

    def forget(self) -> Iterator[Answer]:
        """Yield nothing: the response says what is stored."""
        return iter(())

    def send(self, answer: Answer) -> bool:
        """Send the objects of an answer in one request; see ``Connection``."""
        boundary = uuid.uuid4().hex
        body = bytearray()
        for found in answer.objects:
            body += f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            body += (answer.folder / found["file"]).read_bytes() + b"\r\n"
        body += f"--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
        }
        if self._authorization:
            headers["Authorization"] = self._authorization
        status, content = self._post(bytes(body), headers)
        if status in _OF_THE_OBJECTS:
            raise Refused(f"HTTP status {status}")
        if status in _UNAUTHORIZED:
            raise Unreachable(f"HTTP status {status}: see {AUTHORIZATION}")
        if status // 100 != 2 and status != _CONFLICT:
            raise Unreachable(f"HTTP status {status}")
        _check(status, content, {found["instance"] for found in answer.objects})
        return True

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Make the request, and return the status and the content of the response. Raises Unreachable."""
        url = urlsplit(self.name)
        connection = (
            HTTPSConnection(url.netloc, timeout=self._timeout_s, context=self._tls)
            if url.scheme == "https"
            else HTTPConnection(url.netloc, timeout=self._timeout_s)
        )
        try:
            with closing(connection):
                connection.request("POST", f"{url.path}/studies", body, {**headers, "Connection": "close"})
                with _ended_after(self._timeout_s, connection.sock), connection.getresponse() as response:
                    return response.status, response.read(_MAX_RESPONSE)
        except (OSError, ValueError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise Unreachable(f"cannot be reached ({reason})") from error


@contextmanager
def _ended_after(seconds: float, connection: socket.socket) -> Iterator[None]:
    """Shut a connection down after some time: its own timeout is for each read, and a response may take any number.

    Raises
    ------
    TimeoutError
        The block took longer.
    """
    end = time.monotonic() + seconds
    timer = threading.Timer(seconds, _shut_down, [connection])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if time.monotonic() >= end:  # whatever the block raised when the connection ended
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _check(status: int, content: bytes, sent: set[str]) -> None:
    """Raise Refused unless the response names every object as stored: some archives answer 200 and store nothing."""
    try:
        response = json.loads(content)
        response = response[0] if isinstance(response, list) else response
        stored = {item[_INSTANCE]["Value"][0] for item in response.get(_REFERENCED, {}).get("Value") or []}
        failed = 0
        reasons: set[int] = set()
        for item in response.get(_FAILED, {}).get("Value") or []:
            given = {int(reason) for reason in item.get(_REASON, {}).get("Value") or []}
            if given & _DUPLICATE:
                stored.add(item[_INSTANCE]["Value"][0])
            else:
                failed += 1
                reasons |= given
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Refused(f"its response (HTTP status {status}) cannot be read") from error
    if failed:
        codes = ", ".join(f"0x{reason:04X}" for reason in sorted(reasons))
        raise Refused(f"it did not store {failed} of {len(sent)} objects" + (f" ({codes})" if codes else ""))
    if not sent <= stored:
        raise Refused(f"its response names {len(sent & stored)} of {len(sent)} objects as stored")
