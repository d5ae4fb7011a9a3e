"""Listen for associations within limits that pynetdicom lacks: number of connections, sizes, memory and time."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from pynetdicom import _config
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

MAX_PDU = 64 << 10  # bytes that a peer may send at once, as negotiated (PS3.8 D.1)
_HEADER = 64 << 10  # bytes by which the PDU of an association request may be longer: it has no negotiated limit
_NO_ANSWER = ""  # for an encrypted key OpenSSL would ask on the terminal
_MAX_COMMAND = 1 << 20  # bytes of a command set; real ones have some hundred
_MESSAGE_S = 20  # multiple of the timeout that one message may take as a whole


def silence_pynetdicom() -> None:
    """Make pynetdicom write nothing: its messages quote identifiers and whole data sets."""
    _config.LOG_HANDLER_LEVEL = "none"
    logger = logging.getLogger("pynetdicom")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    logger.setLevel(logging.CRITICAL + 1)
    report = threading.excepthook

    def drop_ours(raised: threading.ExceptHookArgs) -> None:
        """Drop what pynetdicom raises in its threads at odd PDUs. The association ends, which is all there is to do."""
        frames = traceback.walk_tb(raised.exc_traceback)
        if not any(str(frame.f_globals.get("__name__")).startswith("pynetdicom") for frame, _ in frames):
            report(raised)

    threading.excepthook = drop_ours


@dataclass(frozen=True)
class Limits:
    """What peers may take from this machine.

    Attributes
    ----------
    associations
        Associations at a time. One more is rejected, with the reason "local limit exceeded".
    timeout_s
        Longest silence, and longest time for one PDU.
    request_s
        Longest time for a TLS handshake, and from there to the end of the association request. Until then a peer takes
        the place of others without having said who it is.
    instance_bytes
        Largest instance.
    total_bytes
        All instances together that are being received.
    """

    associations: int = 20
    timeout_s: float = 60.0
    request_s: float = 10.0
    instance_bytes: int = 256 << 20
    total_bytes: int = 512 << 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "request_s", min(self.request_s, self.timeout_s))

    @property
    def connections(self) -> int:
        """Connections at a time: more than associations, so that the next peer gets a proper rejection."""
        return self.associations + 8


class _Exceeded(OSError):
    """A peer exceeded a limit. pynetdicom closes the connection after an OSError."""


def _receive(opened: AssociationSocket, size: int, end: float) -> bytearray:
    """Read some bytes of a PDU until a time of ``time.monotonic``, fewer only if the connection ends."""
    if size > MAX_PDU + _HEADER:
        raise _Exceeded("a PDU is longer than negotiated")
    content = bytearray(size)
    view = memoryview(content)
    received = 0
    while received < size:
        left = end - time.monotonic()
        if left <= 0 or opened.socket is None:
            raise _Exceeded("a PDU takes too long")
        opened.socket.settimeout(left)
        count = opened.socket.recv_into(view[received:])
        if not count:
            break
        received += count
    view.release()
    del content[received:]
    return content


def limit_pdus(association: Any, timeout_s: float) -> None:
    """Limit the size and the time of each PDU of an archive, and the time of each write, as pynetdicom does not."""
    opened = association.dul.socket

    def recv(size: int) -> bytearray:
        try:
            return _receive(opened, size, time.monotonic() + timeout_s)
        finally:
            if opened.socket is not None:
                opened.socket.settimeout(timeout_s)  # what is left of it would be too short for sending

    opened.recv = recv


class BoundedSocket(AssociationSocket):
    """The connection of one association. It never waits or stores without a limit.

    ``held`` is the number of bytes of the message that is being received.
    """

    def __init__(self, association: Any, client_socket: socket.socket, limits: Limits) -> None:
        super().__init__(association, client_socket=client_socket)
        self.held = 0
        self._limits = limits
        self._total: Callable[[], int] = association._server.register(self)
        self._message: Any = None
        self._message_since = 0.0
        self._opened = time.monotonic()

    def recv(self, nr_bytes: int) -> bytearray:
        """Read some bytes, fewer only if the connection ends. Raises OSError at a limit."""
        self._check(nr_bytes)
        if self.assoc.requestor.primitive is None:
            end = self._opened + self._limits.request_s
        else:
            end = time.monotonic() + self._limits.timeout_s
        return _receive(self, nr_bytes, end)

    def send(self, bytestream: bytes) -> None:
        """Send all bytes, or end the association."""
        if self.socket is not None:
            self.socket.settimeout(self._limits.timeout_s)
        super().send(bytestream)

    def _check(self, size: int) -> None:
        """Raise an OSError before bytes are read that would exceed a limit."""
        dimse = self.assoc.dimse
        if dimse.msg_queue.qsize() > 1:
            raise _Exceeded("requests are sent without waiting for responses")
        message = dimse.message
        now = time.monotonic()
        if message is not self._message:
            self._message, self._message_since = message, now
        if message is None:
            self.held = 0
            return
        if now - self._message_since > self._limits.timeout_s * _MESSAGE_S:
            raise _Exceeded("a message takes too long")
        if message.encoded_command_set.tell() > _MAX_COMMAND:
            raise _Exceeded("a command is too long")
        self.held = 0 if message.data_set is None else message.data_set.tell()
        if self.held + size > self._limits.instance_bytes:
            raise _Exceeded("an instance is too large")
        if self._total() + size > self._limits.total_bytes:
            raise _Exceeded("too many large instances are being received")


class _Handler(RequestHandler):
    """Starts an association on a bounded socket."""

    def _create_association(self) -> Any:
        association: Any = super()._create_association()
        server: Any = self.server
        association.dul.socket = None
        association.dul.event_queue.get_nowait()  # the new socket announces the connection again
        association.set_socket(BoundedSocket(association, self.request, server.limits))
        receive = association.dul.run

        def receive_and_tell() -> None:
            """Run the thread that reads, then end the wait for a request that cannot come: pynetdicom waits on."""
            try:
                receive()
            finally:
                association.dul.to_user_queue.put(None)

        association.dul.run = receive_and_tell
        return association


class BoundedServer(ThreadedAssociationServer):
    """A server whose accepting thread never waits for a peer, and that drops connections beyond a limit.

    Parameters
    ----------
    limits
        What peers may take.
    is_known
        Whether anyone may open an association from an IP address. Connections from other addresses are closed.
    refused
        Called with a reason and an address for each connection that is closed at once.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        *arguments: Any,
        limits: Limits,
        is_known: Callable[[str], bool],
        refused: Callable[[str, str], None],
        **options: Any,
    ) -> None:
        self.limits = limits
        self._sockets: WeakSet[BoundedSocket] = WeakSet()
        self._is_known = is_known
        self._refused = refused
        self._starting = 0
        self._lock = threading.Lock()
        super().__init__(*arguments, **options, request_handler=_Handler)  # type: ignore[misc]

    def register(self, opened: BoundedSocket) -> Callable[[], int]:
        """Add a connection, and return a function for the bytes of all messages that are being received."""
        with self._lock:  # a set must not grow while another thread goes through it
            self._sockets.add(opened)
        return self._held

    def _held(self) -> int:
        with self._lock:
            return sum(opened.held for opened in self._sockets)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. The TLS handshake follows in the thread of the connection."""
        assert self.socket is not None  # noqa: S101 (the server is bound)
        return self.socket.accept()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection may become an association."""
        address = str(client_address[0])
        if not self._is_known(address):
            self._refused("its address is not allowed", address)
            return False
        if self._starting + len(self.active_associations) >= self.limits.connections:
            self._refused("there are too many connections", address)
            return False
        with self._lock:
            self._starting += 1
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Make the TLS handshake, if any, and start the association in a thread of its own."""
        try:
            if self.ssl_context is not None:
                request.settimeout(self.limits.request_s)
                try:
                    request = self.ssl_context.wrap_socket(request, server_side=True)
                except (OSError, ValueError):
                    self._refused("the TLS handshake failed", str(client_address[0]))
                    return
            super().finish_request(request, client_address)
        finally:
            with self._lock:
                self._starting -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report a connection that ended early; the traceback of socketserver would reach stderr."""
        self._refused("the connection ended", str(client_address[0]))


def server_tls(certificate: str, key: str, authority: str | None) -> ssl.SSLContext:
    """Return the TLS settings of the node. With ``authority`` peers must have a certificate that it signed.

    Raises
    ------
    OSError, ssl.SSLError
        A file cannot be read or does not fit.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key, _NO_ANSWER)
    context.verify_mode = ssl.CERT_REQUIRED if authority else ssl.CERT_NONE
    return context


def client_tls(certificate: str | None, key: str | None, authority: str | None) -> ssl.SSLContext:
    """Return the TLS settings for sending. The peer's certificate is checked, by ``authority`` or by the system's.

    Raises
    ------
    OSError, ssl.SSLError
        A file cannot be read or does not fit.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate:
        context.load_cert_chain(certificate, key, _NO_ANSWER)
    return context
