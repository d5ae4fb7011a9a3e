"""The node's server against peers that are slow, broken or hostile: it stays up, and its limits hold."""

from __future__ import annotations

import errno
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydicom", reason="needs the extra node")
pytest.importorskip("pynetdicom", reason="needs the extra node")

CHECKOUT = Path(__file__).resolve().parents[2]
from pynetdicom import evt

from benchmarks.node import peers
from mri_edge.services.dicom import network, spool
from mri_edge.services.dicom.addresses import LOOPBACK, Sender, parse_sender
from mri_edge.services.dicom.counters import Counters
from mri_edge.services.dicom.network import Limits, server_tls, silence_pynetdicom
from mri_edge.services.dicom.receiver import Receiver
from mri_edge.services.dicom.spool import Spool

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the node is for POSIX systems")
LIMITS = Limits(associations=3, timeout_s=1.5, instance_bytes=1 << 20, total_bytes=2 << 20)


class Server:
    """A receiver with its spool, and what it reported."""

    def __init__(self, folder: Path, limits: Limits, **options: Any) -> None:
        silence_pynetdicom()
        self.spool = Spool(folder)
        self.spool.make()
        self.messages: list[str] = []
        self.counters = Counters()
        senders: tuple[Sender, ...] = options.pop("senders", LOOPBACK)
        self.receiver = Receiver(
            self.spool,
            aet=peers.AET,
            address=("127.0.0.1", 0),
            senders=senders,
            counters=self.counters,
            report=self.messages.append,
            limits=limits,
            **options,
        )
        self.port = self.receiver.port
        self.thread = threading.Thread(target=self.receiver.serve, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.receiver.stop()
        self.thread.join(timeout=30)

    def stored(self) -> list[str]:
        return sorted(path.name for path in self.spool.incoming.glob("*.dcm"))

    def leftovers(self) -> list[str]:
        return [path.name for path in self.spool.incoming.iterdir() if path.suffix != ".dcm"]

    def raw(self, content: bytes = b"") -> socket.socket:
        """A connection of which the first bytes were sent."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        client.sendall(content)
        return client


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(limits: Limits = LIMITS, **options: Any) -> Server:
        made.append(Server(tmp_path / f"spool-{len(made)}", limits, **options))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    return make_server()


def send(server: Server, number: int = 0, **values: Any) -> int | None:
    association = peers.associate(server.port)
    assert association.is_established
    status = association.send_c_store(peers.instance(1, number, size=16, **values)).get("Status")
    association.release()
    return status


def works(server: Server) -> None:
    """Assert that the server still takes an instance."""
    before = len(server.stored())
    peers.wait_for(lambda: server.receiver.associations == 0, "the other associations end", 120)
    assert send(server, 1000 + before) == 0
    assert len(server.stored()) == before + 1
    assert server.leftovers() == []


def ends(client: socket.socket, seconds: float = 30) -> bytes:
    """Return what the server sends until it closes the connection."""
    client.settimeout(seconds)
    content = b""
    try:
        while piece := client.recv(4096):
            content += piece
    except ConnectionResetError:
        pass
    return content


@pytest.fixture
def conversation(server: Server) -> list[bytes]:
    """The PDUs of a sender: association request, C-STORE request in some PDUs, release request."""
    sent: list[bytes] = []
    from pynetdicom import AE

    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(peers.MR)
    association = ae.associate(
        "127.0.0.1",
        server.port,
        ae_title=peers.AET,
        evt_handlers=[(evt.EVT_DATA_SENT, lambda event: sent.append(bytes(event.data)))],
    )
    association.send_c_store(peers.instance(7, 0, size=16))
    association.release()
    assert len(sent) >= 4
    return sent


# --- broken and hostile peers


GARBAGE = {
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": b"\0" * 100,
    "a PDU of 4 GiB": b"\x01\0\xff\xff\xff\xff" + b"x" * 1000,
    "an empty request": b"\x01\0\0\0\0\x00",
    "P-DATA without an association": b"\x04\0\0\0\0\x06\0\0\0\x02\x01\x03",
    "an abort without an association": b"\x07\0\0\0\0\x04\0\0\0\0",
}


def test_garbage_ends_the_connection_and_nothing_else(server: Server) -> None:
    clients = [server.raw(content) for content in GARBAGE.values()]
    for client in clients:
        ends(client)
        client.close()
    works(server)


def test_a_pdu_that_is_too_long_is_not_waited_for(make_server: Callable[..., Server]) -> None:
    server = make_server(Limits(associations=3, timeout_s=600, request_s=600))
    client = server.raw(b"\x01\0\xff\xff\xff\xff")
    ends(client, 30)
    client.close()
    works(server)


@pytest.mark.parametrize("sent", [0, 20])
def test_a_request_has_less_time_than_an_association(
    make_server: Callable[..., Server], conversation: list[bytes], sent: int
) -> None:
    server = make_server(Limits(associations=3, timeout_s=600, request_s=1))
    client = server.raw(conversation[0][:sent])
    assert ends(client, 30) == b""
    client.close()
    works(server)


@pytest.mark.parametrize("content", [b"", GARBAGE["HTTP"]])
def test_connections_that_ended_take_no_places(
    make_server: Callable[..., Server], conversation: list[bytes], content: bytes
) -> None:
    limits = Limits(associations=3, timeout_s=60, request_s=60)
    server = make_server(limits)
    for _ in range(limits.connections):
        server.raw(content).close()

    def is_accepted() -> bool:
        with suppress(ConnectionError), server.raw(conversation[0]) as client:
            return client.recv(1) == b"\x02"  # A-ASSOCIATE-AC
        return False

    # The server may still have to accept them all, and refuses a sender until it has closed some.
    peers.wait_for(is_accepted, "a place is free", 10)
    works(server)


def test_silent_and_slow_peers_are_closed_in_time(server: Server, conversation: list[bytes]) -> None:
    start = time.monotonic()
    silent, half = server.raw(), server.raw(conversation[0][:20])
    accepted = server.raw(conversation[0])
    drip = server.raw(conversation[0])
    for byte in conversation[1][:6]:  # faster than the timeout, but the whole PDU takes too long
        time.sleep(0.3)
        try:
            drip.sendall(bytes([byte]))
        except OSError:
            break
    for client in (silent, half, accepted, drip):
        ends(client)
        client.close()
    assert time.monotonic() - start < 20 * LIMITS.timeout_s
    works(server)


def test_an_abort_within_an_instance_stores_nothing(server: Server, conversation: list[bytes]) -> None:
    before = server.stored()
    client = server.raw(conversation[0])
    client.recv(4096)
    client.sendall(conversation[1] + conversation[2][: len(conversation[2]) // 2])
    client.close()
    client = server.raw(conversation[0])
    client.recv(4096)
    client.sendall(conversation[1] + b"\x07\0\0\0\0\x04\0\0\0\0")
    ends(client)
    client.close()
    assert server.stored() == before
    works(server)


def test_data_without_a_command_is_limited(server: Server, conversation: list[bytes]) -> None:
    client = server.raw(conversation[0])
    client.recv(4096)
    fragment = b"\x04\0" + (1 << 16).to_bytes(4, "big") + ((1 << 16) - 4).to_bytes(4, "big") + b"\x01\0"
    fragment += bytes((1 << 16) + 6 - len(fragment))
    with pytest.raises(OSError):  # noqa: PT011 (reset or broken pipe)
        for _ in range(100):
            client.sendall(fragment)
    client.close()
    works(server)


def test_an_instance_above_the_limit_is_not_stored(server: Server) -> None:
    association = peers.associate(server.port, timeout_s=5)
    assert not association.send_c_store(peers.instance(1, 0, size=1024))  # 2 MiB
    association.abort()
    assert server.stored() == []
    works(server)


def test_instances_together_are_limited_too(make_server: Callable[..., Server]) -> None:
    server = make_server(Limits(associations=3, timeout_s=5, instance_bytes=1 << 20, total_bytes=1 << 10))
    association = peers.associate(server.port, timeout_s=5)
    assert not association.send_c_store(peers.instance(1, 0, size=128))
    association.abort()
    assert server.stored() == []


@pytest.mark.filterwarnings("ignore")
def test_mutated_conversations_neither_end_the_server_nor_fill_the_memory(
    server: Server, conversation: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    escaped: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", escaped.append)
    silence_pynetdicom()
    rng = random.Random(3)
    threads = threading.active_count()
    for _ in range(60):
        stream = bytearray(b"".join(conversation))
        for _ in range(rng.randrange(1, 6)):
            position = rng.randrange(len(stream)) if rng.random() < 0.3 else rng.randrange(400)
            action = rng.random()
            if action < 0.6:
                stream[position] = rng.randrange(256)
            elif action < 0.8:
                del stream[position : position + rng.randrange(1, 9)]
            else:
                stream[position:position] = rng.randbytes(rng.randrange(1, 9))
        client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        try:
            client.sendall(stream)
            client.shutdown(socket.SHUT_WR)
            ends(client)
        except OSError:
            pass
        client.close()
    peers.wait_for(lambda: threading.active_count() <= threads, "the threads end", 60)
    assert [str(hook.exc_value) for hook in escaped] == []
    works(server)


# --- who may do what


def test_titles_are_compared_without_the_spaces_around_them(make_server: Callable[..., Server]) -> None:
    server = make_server(senders=(parse_sender("SCANNER 1@127.0.0.0/8"),))
    for aet, called, accepted in (
        (" SCANNER 1 ", "MRIEDGE  ", True),
        ("SCANNER 1", " MRIEDGE", True),
        ("SCANNER1", "MRIEDGE", False),
        ("SCANNER 1", "OTHER", False),
    ):
        association = peers.associate(server.port, aet=aet, called=called)
        assert association.is_established == accepted, (aet, called)
        assert association.is_rejected != accepted
        association.abort()
    assert any("'SCANNER1'" in message for message in server.messages)


def test_a_title_from_another_network_is_closed_or_rejected(make_server: Callable[..., Server]) -> None:
    elsewhere = make_server(senders=(parse_sender("*@10.0.0.0/8"),))
    client = elsewhere.raw()
    assert ends(client) == b""
    client.close()
    mixed = make_server(senders=(parse_sender("SCANNER@10.0.0.0/8"), parse_sender("OTHER@127.0.0.1")))
    association = peers.associate(mixed.port)
    assert association.is_rejected
    assert mixed.counters.items()
    assert len([message for message in mixed.messages if "was refused" in message]) == 1


def test_one_association_too_many_is_rejected_and_connections_are_dropped(server: Server) -> None:
    opened = [peers.associate(server.port) for _ in range(LIMITS.associations)]
    assert all(association.is_established for association in opened)
    another = peers.associate(server.port)
    assert another.is_rejected
    assert (another.acceptor.primitive.result_source, another.acceptor.primitive.diagnostic) == (3, 2)
    silent = [server.raw() for _ in range(LIMITS.connections + 5)]
    assert ends(silent[-1]) == b""
    assert server.receiver.associations <= LIMITS.connections
    for client in silent:
        client.close()
    for association in opened:
        association.release()
    works(server)


def test_many_associations_at_once_are_all_served(
    make_server: Callable[..., Server], server: Server, conversation: list[bytes]
) -> None:
    busy = make_server(Limits(associations=40, timeout_s=60))
    released = b"\x06\0\0\0\0\x04\0\0\0\0"
    answers: list[bytes] = []

    def send_some() -> None:
        for _ in range(8):
            client = busy.raw(conversation[0])
            client.settimeout(60)
            client.recv(4096)
            client.sendall(b"".join(conversation[1:-1]))
            client.recv(4096)
            client.sendall(conversation[-1])
            answers.append(ends(client, 60)[-10:])
            client.close()

    threads = [threading.Thread(target=send_some) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [released] * 160
    assert len(busy.stored()) == 1


def test_connections_may_open_while_their_memory_is_counted(server: Server) -> None:
    class Opened:
        held = 1

    opened = [Opened() for _ in range(20_000)]
    bounded: Any = server.receiver._server
    thread = threading.Thread(target=lambda: [bounded.register(connection) for connection in opened])
    thread.start()
    while thread.is_alive():
        assert bounded._held() <= len(opened)
    assert bounded._held() == len(opened)


def test_unknown_classes_are_refused_and_known_syntaxes_accepted(server: Server) -> None:
    from pynetdicom import AE

    from mri_edge.scans.readers import dicom

    ae = AE()
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.2")  # CT
    for syntax in (*dicom.transfer_syntaxes(), "1.2.840.10008.1.2.4.201"):
        ae.add_requested_context(peers.MR, syntax)
    contexts = [cx for cx in ae.requested_contexts if cx.abstract_syntax != peers.MR]
    from pynetdicom import build_context

    contexts += [build_context(peers.MR, syntax) for syntax in dicom.transfer_syntaxes()]
    contexts.append(build_context(peers.MR, "1.2.840.10008.1.2.4.201"))
    association = ae.associate("127.0.0.1", server.port, ae_title=peers.AET, contexts=contexts)
    accepted = {context.transfer_syntax[0] for context in association.accepted_contexts}
    association.release()
    assert accepted == set(dicom.transfer_syntaxes())
    assert len(association.rejected_contexts) == 2


def test_the_name_has_the_port_that_was_free(server: Server) -> None:
    assert server.port > 0
    assert server.receiver.name == f"{peers.AET}@127.0.0.1:{server.port}"


def test_a_pdu_of_an_archive_has_a_limit_as_a_whole() -> None:
    from mri_edge.services.dicom.addresses import DicomAddress
    from mri_edge.services.dicom.cstore import CStoreArchive
    from mri_edge.services.dicom.delivery import Unreachable

    silence_pynetdicom()
    with socket.create_server(("127.0.0.1", 0)) as archive:

        def drip() -> None:
            connection, _ = archive.accept()
            with connection, suppress(OSError):
                connection.sendall(b"\x02\0\0\0\xff\xff")
                for _ in range(300):
                    connection.sendall(b"x")
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        start = time.monotonic()
        address = DicomAddress("ARCHIVE", "127.0.0.1", archive.getsockname()[1])
        with pytest.raises(Unreachable), CStoreArchive(address, "MRIEDGE", timeout_s=0.5).connect():
            pass
        assert time.monotonic() - start < 15


# --- disks


def test_an_instance_is_on_disk_before_it_is_acknowledged(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(number: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{number}") else "file")
        fsync(number)

    def note_replace(source: Any, target: Any) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    assert send(server) == 0
    if os.path.isdir("/proc/self/fd"):
        assert steps == ["file", "rename", "folder"]


@pytest.mark.parametrize("reason", ["little space", "full", "unmounted", "forbidden"])
def test_a_disk_that_takes_nothing_is_reported_to_the_sender(
    server: Server, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def fail(number: int) -> None:
        code = {"full": errno.ENOSPC, "unmounted": errno.ENOENT, "forbidden": errno.EACCES}[reason]
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if reason == "little space":
            patch.setattr(spool, "RESERVE", 1 << 60)
        else:
            patch.setattr(spool.os, "fsync", fail)
        assert send(server) == (0x0110 if reason == "forbidden" else 0xA700)
        assert send(server) != 0
    assert server.stored() == []
    assert len(server.messages) == 1
    works(server)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (MemoryError(), 0xA700, "the memory is used up"),
        (KeyError("secret"), 0x0110, "(KeyError in test_dicom_network.py:"),
    ],
)
def test_an_error_of_the_node_is_counted_and_reported(
    server: Server, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, reason: str
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(spool.Spool, "store", fail)
        assert send(server) == status
    (message,) = server.messages
    assert reason in message
    assert "secret" not in message
    works(server)


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs openssl")
    return certificate, key


def test_no_pass_phrase_is_asked_for(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    path, key = map(str, certificate)
    encrypted = str(tmp_path / "key.pem")
    encrypt = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", key, "-out", encrypted]
    subprocess.run(encrypt, check=True, capture_output=True, timeout=60)
    code = (
        "import sys; from mri_edge.services.dicom.network import client_tls, server_tls\n"
        "for read in (server_tls, client_tls):\n"
        "    try: read(*sys.argv[1:], None)\n"
        "    except OSError: print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, encrypted], input="secret\n" * 4, capture_output=True, text=True, check=True
    )
    assert (done.stdout.split(), done.stderr) == (["refused"] * 2, "")


def test_a_peer_that_stalls_the_handshake_does_not_block_others(
    make_server: Callable[..., Server], certificate: tuple[Path, Path]
) -> None:
    path, key = map(str, certificate)
    limits = Limits(associations=3, timeout_s=20)
    server = make_server(limits, tls=server_tls(path, key, path))
    stalled = [server.raw(b"\x16\x03\x01"), server.raw()]
    from pynetdicom import AE

    def establish(context: ssl.SSLContext) -> bool:
        ae = AE(ae_title="SCANNER")
        ae.connection_timeout = limits.timeout_s
        ae.add_requested_context(peers.MR)
        start = time.monotonic()
        association = ae.associate("127.0.0.1", server.port, ae_title=peers.AET, tls_args=(context, "localhost"))
        established = bool(association.is_established)
        association.abort()
        assert time.monotonic() - start < limits.timeout_s
        return established

    known = network.client_tls(path, key, path)
    try:
        assert establish(known)
    finally:
        for client in stalled:
            client.close()
    without = ssl.create_default_context(cafile=path)  # no certificate of its own
    assert not establish(without)
    plain = server.raw(b"GET / HTTP/1.1\r\n\r\n")
    ends(plain)
    plain.close()
    peers.wait_for(lambda: any("TLS handshake failed" in message for message in server.messages), "a message")
    assert establish(known)


def test_results_go_by_tls_to_an_archive_whose_certificate_is_checked(certificate: tuple[Path, Path]) -> None:
    from pynetdicom import AE

    from mri_edge.services.dicom.addresses import parse_destination
    from mri_edge.services.dicom.cstore import CStoreArchive
    from mri_edge.services.dicom.delivery import Unreachable

    silence_pynetdicom()
    path, key = map(str, certificate)
    ae = AE(ae_title="ARCHIVE")
    ae.add_supported_context("1.2.840.10008.5.1.4.1.1.88.34")
    archive = ae.start_server(("127.0.0.1", 0), block=False, ssl_context=server_tls(path, key, path))
    address = parse_destination(f"ARCHIVE@localhost:{archive.server_address[1]}/tls")
    try:
        with CStoreArchive(address, "MRIEDGE", tls=network.client_tls(path, key, path), timeout_s=20).connect():
            pass
        for context, reason in (
            (network.client_tls(None, None, None), "its certificate is not accepted: see --tls-ca"),
            (network.client_tls(None, None, path), None),  # it has no certificate of its own
        ):
            with (
                pytest.raises(Unreachable, match=reason),
                CStoreArchive(address, "MRIEDGE", tls=context, timeout_s=20).connect(),
            ):
                pass
    finally:
        archive.shutdown()
