"""Decide who may ask, and set the headers that protect a browser that shows the answers."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mri_edge.errors import UsageError

from .errors import CLOSE, Headers, RequestRefused

# The page and the documentation contain no data, and a browser sends no token for them. Probes send none either.
_OPEN = ("/", "/docs", "/docs.css", "/openapi.json", "/v2/health/live", "/v2/health/ready")
_OPEN_FOLDER = "/page/"
_LEAST_TOKEN = 16  # characters

# The page runs only its own scripts and styles, connects only to this server, and cannot be framed.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    b"manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Headers = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", _POLICY),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a server on this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path) -> bytes:
    """Return the token in a file, without white space at its ends. Raises UsageError."""
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"{path}: cannot read the token ({error.strerror})") from error
    if len(token) < _LEAST_TOKEN or not token.isascii() or not all(33 <= code <= 126 for code in token):
        raise UsageError(
            f"{path}: a token must have at least {_LEAST_TOKEN} printable ASCII characters without spaces",
            "Make one: openssl rand -hex 32",
        )
    return token


@dataclass(frozen=True)
class Guard:
    """Who may ask.

    Attributes
    ----------
    token
        What requests must send as ``Authorization: Bearer TOKEN``, or None.
    local
        Whether the server listens on the loopback interface without a token. It then answers only requests that name
        this machine, because a web page elsewhere could otherwise reach it through a host name of its own.
    """

    token: bytes | None
    local: bool

    def check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Raise RequestRefused: 401 without the token, 403 for a page of another site, 421 for another host name."""
        if self.local and not is_loopback(_host_name(headers.get(b"host", b""))):
            message = "the Host header must name this machine, such as localhost. A proxy must set it, or use a token"
            raise RequestRefused(421, "host", message, headers=CLOSE)
        if b"origin" in headers and headers[b"origin"].rpartition(b"/")[2] != headers.get(b"host"):
            message = "requests from pages of other sites are refused. A proxy must pass the Host header on unchanged"
            raise RequestRefused(403, "origin", message, headers=CLOSE)
        if self.token is None or path in _OPEN or path.startswith(_OPEN_FOLDER):
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token):
            raise RequestRefused(
                401,
                "unauthorized",
                "send the token of this server as 'Authorization: Bearer TOKEN'",
                headers=((b"www-authenticate", b'Bearer realm="mri-edge"'), *CLOSE),
            )


def _host_name(host: bytes) -> str:
    """Return a Host header without its port, in lower case: ``[::1]:8000`` gives ``::1``."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
