"""Parse addresses: who may send (``AET@CIDR``), and where results go (``AET@HOST:PORT`` or a URL)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from mri_edge.errors import UsageError

ANY_AET = "*"
_AET = re.compile(r"[ -\[\]-~]{1,16}")  # PS3.5 6.2: up to 16 characters, no backslash and no control characters
_URL = re.compile(r"[!-~]+")  # RFC 3986, 2: ASCII without spaces and control characters
_DESTINATION = re.compile(r"(?P<aet>[^@]+)@(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/@\[\]]+):(?P<port>\d{1,5})(?P<tls>/tls)?")


@dataclass(frozen=True)
class Sender:
    """Who may open an association: a calling AE title, or ``"*"``, from the addresses of a network."""

    aet: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network

    def is_from(self, address: str) -> bool:
        """Whether an IP address belongs to the network."""
        found = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return found in self.network

    def allows(self, aet: str, address: str) -> bool:
        """Whether a calling AE title may open an association from an address."""
        return self.aet in (ANY_AET, aet) and self.is_from(address)


LOOPBACK = (
    Sender(ANY_AET, ipaddress.ip_network("127.0.0.0/8")),
    Sender(ANY_AET, ipaddress.ip_network("::1/128")),
)
"""Programs on this machine. Only they may send if nobody else is named."""


@dataclass(frozen=True)
class DicomAddress:
    """An archive that takes results by C-STORE."""

    aet: str
    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.aet}@{host}:{self.port}{'/tls' if self.tls else ''}"


@dataclass(frozen=True)
class WebAddress:
    """An archive that takes results by STOW-RS: the address of its DICOMweb service."""

    url: str

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.url.startswith("https://")

    def __str__(self) -> str:
        return self.url


Address = DicomAddress | WebAddress


def parse_aet(text: str) -> str:
    """Return an AE title without the spaces around it. Raises UsageError."""
    aet = text.strip(" ")
    if not _AET.fullmatch(aet):
        raise UsageError(f"an AE title has 1 to 16 ASCII characters and no backslash. Received: {text!r:.60}")
    return aet


def parse_sender(text: str) -> Sender:
    """Return who ``AET@CIDR`` means, such as ``SCANNER1@10.1.2.3`` or ``*@10.1.0.0/16``. Raises UsageError."""
    aet, at, network = text.rpartition("@")
    try:
        if at:
            return Sender(parse_aet(aet), ipaddress.ip_network(network, strict=False))
    except ValueError:
        pass
    raise UsageError(
        f"--allow takes an AE title, @, and an IP address or network. Received: {text!r:.80}",
        "For example: --allow SCANNER1@10.1.2.3",
    )


def parse_destination(text: str) -> Address:
    """Return where ``AET@HOST:PORT``, the same with ``/tls``, or a DICOMweb URL leads. Raises UsageError."""
    if text.startswith(("http://", "https://")):
        return _parse_url(text)
    found = _DESTINATION.fullmatch(text)
    if found is None or not 0 < int(found["port"]) < 1 << 16:
        raise UsageError(
            f"--send-to takes AET@HOST:PORT or a DICOMweb URL. Received: {text!r:.80}",
            "For example: --send-to ORTHANC@10.1.2.4:4242",
        )
    return DicomAddress(parse_aet(found["aet"]), found["host"].strip("[]"), int(found["port"]), bool(found["tls"]))


def _parse_url(text: str) -> WebAddress:
    example = "For example: --send-to https://pacs.example/dicom-web"
    try:
        parts = urlsplit(text)
        is_url = bool(parts.hostname) and parts.port != 0 and _URL.fullmatch(text) is not None
    except ValueError:  # brackets without an IP address, or a port beyond 65535
        is_url = False
    if not is_url:  # it may contain a password, so it is not repeated
        raise UsageError("--send-to takes the URL of a DICOMweb service. This one is not valid", example)
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError("--send-to takes a URL without user, password, query and fragment", example)
    return WebAddress(text.rstrip("/"))


def default_bind(senders: Sequence[Sender]) -> str:
    """Return the address to listen on: every one of this machine if others may send, otherwise the loopback address.

    "::" takes IPv4 too. It is used only where a sender has an IPv6 address, because a machine may have none.
    """
    if not senders:
        return "127.0.0.1"
    return "::" if any(sender.network.version == 6 for sender in senders) else "0.0.0.0"  # noqa: S104


def check_bind(bind: str, senders: Sequence[Sender]) -> None:
    """Raise UsageError if ``bind`` is no IP address, or would be open to others though nobody is allowed to send."""
    try:
        address = ipaddress.ip_address(bind)
    except ValueError:
        raise UsageError(
            f"--bind takes an IP address. Received: {bind!r:.60}", "For example: --bind 10.1.2.3"
        ) from None
    if not senders and not address.is_loopback:
        raise UsageError(
            f"--bind {bind} needs --allow: who may send to the node", "For example: --allow SCANNER1@10.1.2.3/32"
        )
