"""Send answers by C-STORE, and ask the archive to commit itself to their storage (PS3.4 annex J) if wanted."""

from __future__ import annotations

import json
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from mri_edge.errors import MriEdgeError
from mri_edge.storage.atomic import atomic_write

from .addresses import DicomAddress
from .answers import Answer
from .delivery import Connection, Delivery, Refused, Unreachable
from .network import limit_pdus

CONFIRM_S = 600.0
"""Seconds after which an answer is sent again if no confirmation of its storage came."""
_SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
# PS3.4 B.2.3: stored with a warning; and PS3.7 C.5.11: the archive has an object with this identifier, which is ours,
# because identifiers follow from the content.
_STORED = {0x0000, 0xB000, 0xB006, 0xB007, 0x0111}
_OUT_OF_RESOURCES = range(0xA700, 0xA800)
_REQUEST = 1  # the action, and the event type of a complete success
_REASONS = {0x03: "it does not know the AE title {ours}", 0x07: "it does not have the AE title {theirs}"}


class CStoreArchive:
    """An archive that takes C-STORE.

    Parameters
    ----------
    aet
        AE title of the node.
    tls
        Settings for an address with TLS.
    commit
        Whether an answer is delivered only after the archive has confirmed its storage.
    timeout_s
        Longest time to wait for the archive.
    """

    def __init__(
        self,
        address: DicomAddress,
        aet: str,
        *,
        tls: ssl.SSLContext | None = None,
        commit: bool = False,
        timeout_s: float = 60.0,
        confirm_s: float = CONFIRM_S,
    ) -> None:
        self.name = str(address)
        self._address = address
        self._aet = aet
        self._tls = tls
        self._commit = commit
        self._timeout_s = timeout_s
        self._confirm_s = confirm_s
        self._requests: dict[str, tuple[Answer, float]] = {}  # by transaction: what, and when it was asked
        self._lock = threading.Lock()
        self._delivery: Delivery | None = None
        self._ae = AE(ae_title=aet)
        self._ae.connection_timeout = self._ae.acse_timeout = min(timeout_s, 30.0)
        self._ae.dimse_timeout = self._ae.network_timeout = timeout_s
        for sop_class in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage):
            self._ae.add_requested_context(sop_class, _SYNTAXES)
        if commit:
            self._ae.add_requested_context(StorageCommitmentPushModel, _SYNTAXES)

    def start(self, delivery: Delivery, waiting: Iterator[Answer]) -> None:
        """Find the requests that an earlier run made and that are not confirmed yet; see ``Archive``."""
        self._delivery = delivery
        for answer in waiting:
            path = answer.marker(self.name, "requested")
            if not self._commit:
                path.unlink(missing_ok=True)
                continue
            try:
                transaction = str(json.loads(path.read_bytes())["transaction"])
                with self._lock:
                    self._requests[transaction] = answer, time.monotonic()
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError):
                path.unlink(missing_ok=True)

    def forget(self) -> Iterator[Answer]:
        """Yield answers whose storage was not confirmed in time. They are sent again."""
        now = time.monotonic()
        with self._lock:
            late = [transaction for transaction, (_, since) in self._requests.items() if now - since > self._confirm_s]
            answers = [self._requests.pop(transaction)[0] for transaction in late]
        for answer in answers:
            answer.marker(self.name, "requested").unlink(missing_ok=True)
            yield answer

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Open an association, and release it at the end. Raises Unreachable."""
        address = self._address
        tls = (self._tls, address.host) if address.tls and self._tls is not None else None
        connected: list[Any] = []

        def opened(event: Any) -> None:
            limit_pdus(event.assoc, self._timeout_s)
            connected.append(event)

        association = self._ae.associate(
            address.host,
            address.port,
            ae_title=address.aet,
            tls_args=tls,
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.receive), (evt.EVT_CONN_OPEN, opened)],
        )
        if not association.is_established:
            certificate = ", or its certificate is not accepted: see --tls-ca" if address.tls else ""
            raise Unreachable(self._why(association) if connected else f"cannot be reached{certificate}")
        try:
            yield _Association(self, association)
        finally:
            if association.is_established:
                association.release()
            else:
                association.abort()

    def receive(self, event: Any) -> tuple[int, None]:
        """Take the archive's report on a request: the handler of N-EVENT-REPORT, in a thread of pynetdicom."""
        try:
            information = event.event_information
            transaction = str(information.TransactionUID)
            stored = {str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence") or ()}
        except Exception:  # noqa: BLE001 (what a peer sent cannot be decoded)
            return 0x0110, None
        with self._lock:
            request = self._requests.pop(transaction, None)
        if request is None or self._delivery is None:
            return 0x0110, None
        answer, _ = request
        try:
            if {found["instance"] for found in answer.objects} <= stored:
                self._delivery.delivered(answer)
            else:
                self._delivery.refuse(answer, "it did not store every object")
        except (OSError, MriEdgeError):
            with self._lock:  # the disk is full: the archive is asked again later
                self._requests[transaction] = request
            return 0x0110, None
        return 0x0000, None

    def request(self, association: Association, answer: Answer) -> bool:
        """Ask for the commitment to an answer that was stored. Returns whether it is delivered without one."""
        if not self._commit:
            return True
        transaction = f"2.25.{uuid.uuid4().int}"
        information = Dataset()
        information.TransactionUID = transaction
        information.ReferencedSOPSequence = [_reference(found) for found in answer.objects]
        atomic_write(answer.marker(self.name, "requested"), json.dumps({"transaction": transaction}))
        with self._lock:  # the report may come before the response
            self._requests[transaction] = answer, time.monotonic()
        problem = None
        try:
            status, _ = association.send_n_action(
                information, _REQUEST, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
            if status.get("Status") != 0:
                problem = "it refused the request to commit itself to the storage"
        except (ValueError, RuntimeError):
            problem = "it does not offer storage commitment. Leave out --commit"
        if problem is not None:
            with self._lock:
                self._requests.pop(transaction, None)
            answer.marker(self.name, "requested").unlink(missing_ok=True)
            raise Refused(problem)
        return False

    def _why(self, association: Association) -> str:
        """Return why there is no association."""
        if association.is_rejected:
            response: Any = association.acceptor.primitive
            reason = _REASONS.get(response.diagnostic if response.result_source == 1 else 0)
            if reason:
                return "rejected the association: " + reason.format(ours=self._aet, theirs=self._address.aet)
            return "rejected the association"
        return "does not accept the association"


class _Association:
    """An association with an archive."""

    def __init__(self, archive: CStoreArchive, association: Association) -> None:
        self._archive = archive
        self._association = association

    def send(self, answer: Answer) -> bool:
        """Send the objects of an answer; see ``Connection``."""
        for found in answer.objects:
            self._store(answer.folder / found["file"])
        return self._archive.request(self._association, answer)

    def _store(self, path: Path) -> None:
        dataset = dcmread(path)
        if not self._association.is_established:
            raise Unreachable("the association ended")
        try:
            response = self._association.send_c_store(dataset)
        except ValueError as error:
            kind = "Comprehensive 3D SR" if path.name.startswith("sr-") else "Secondary Capture"
            raise Refused(f"it does not accept {kind}") from error
        except RuntimeError as error:
            raise Unreachable("the association ended") from error
        status = response.get("Status")
        if status is None:
            raise Unreachable("no response")
        if status in _OUT_OF_RESOURCES:
            raise Unreachable(f"out of resources (status 0x{status:04X})")
        if status not in _STORED:
            raise Refused(f"status 0x{status:04X}")


def _reference(found: dict[str, str]) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = found["sop_class"], found["instance"]
    return item
