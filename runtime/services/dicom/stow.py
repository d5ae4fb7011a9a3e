"""Send answers by STOW-RS, the store of DICOMweb (PS3.18 10.5)."""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .addresses import WebAddress
from .answers import Answer
from .delivery import Connection, Delivery, Refused, Unreachable

AUTHORIZATION = "MRI_EDGE_STOW_AUTHORIZATION"
"""Environment variable with the value of the header ``Authorization``, such as ``Bearer TOKEN``."""
_MAX_RESPONSE = 1 << 20  # bytes
_REFERENCED, _FAILED, _INSTANCE = "00081199", "00081198", "00081155"
_REASON = "00081197"
# The archive refuses these objects; other errors concern every answer.
_OF_THE_OBJECTS = {400, 409, 413, 415, 422}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Objects identify a patient, so they go to the address that was named and to no other."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        """Follow no redirection."""


class StowArchive:
    """An archive that takes STOW-RS.

    Parameters
    ----------
    tls
        Settings for https.
    timeout_s
        Longest time to wait for the archive.
    """

    def __init__(self, address: WebAddress, *, tls: ssl.SSLContext | None = None, timeout_s: float = 60.0) -> None:
        self.name = str(address)
        self._timeout_s = timeout_s
        # A proxy from the environment would see the objects.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
        if tls is not None:
            handlers.append(urllib.request.HTTPSHandler(context=tls))
        self._opener = urllib.request.build_opener(*handlers)

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
        if authorization := os.environ.get(AUTHORIZATION):
            headers["Authorization"] = authorization
        request = urllib.request.Request(f"{self.name}/studies", bytes(body), headers, method="POST")  # noqa: S310
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                content = response.read(_MAX_RESPONSE)
        except urllib.error.HTTPError as error:
            with error:
                reason = f"HTTP status {error.code}"
            if error.code in _OF_THE_OBJECTS:
                raise Refused(reason) from error
            raise Unreachable(reason) from error
        except (OSError, ValueError) as error:  # URLError is an OSError
            raise Unreachable(f"cannot be reached ({_reason(error)})") from error
        _check(content, {found["instance"] for found in answer.objects})
        return True


def _check(content: bytes, sent: set[str]) -> None:
    """Raise Refused unless the response names every object as stored: some archives answer 200 and store nothing."""
    try:
        response = json.loads(content)
        response = response[0] if isinstance(response, list) else response
        failed = response.get(_FAILED, {}).get("Value") or []
        stored = {item[_INSTANCE]["Value"][0] for item in response.get(_REFERENCED, {}).get("Value") or []}
        reasons = sorted({int(item[_REASON]["Value"][0]) for item in failed if _REASON in item})
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Refused("its response cannot be read") from error
    if failed:
        codes = ", ".join(f"0x{reason:04X}" for reason in reasons)
        raise Refused(f"it did not store {len(failed)} of {len(sent)} objects" + (f" ({codes})" if codes else ""))
    if not sent <= stored:
        raise Refused(f"its response names {len(sent & stored)} of {len(sent)} objects as stored")


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or type(cause).__name__
