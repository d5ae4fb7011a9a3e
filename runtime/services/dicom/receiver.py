"""Receive instances: C-ECHO, C-STORE and the archives' reports on storage commitment."""

from __future__ import annotations

import errno
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
    Verification,
)

from mri_edge.errors import DISK_ERRORS, UsageError
from mri_edge.scans.readers import dicom

from .addresses import DicomAddress, Sender
from .counters import Counters
from .network import MAX_PDU, BoundedServer, Limits
from .spool import Spool, fault

# Secondary captures come with many series. They are received so that the scanner reports no error, and not classified.
STORAGE_CLASSES = (
    MRImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    SecondaryCaptureImageStorage,
)
_SUCCESS, _OUT_OF_RESOURCES, _PROCESSING_FAILURE = 0x0000, 0xA700, 0x0110  # PS3.4 B.2.3, PS3.7 annex C
_PREAMBLE = b"\0" * 128 + b"DICM"
_NOT_ALLOWED = (1, 1, 3)  # permanent, by the service user, calling AE title not recognized (PS3.8 9.3.4)
_REMIND_S = 600.0  # time after which the same refusal is reported again
_MAX_REMEMBERED = 1000  # refusals


class Receiver:
    """The server of a node.

    Parameters
    ----------
    spool
        Where instances go.
    aet
        Title by which the node must be called.
    address
        IP address and port to listen on; port 0: any free one.
    senders
        Who may open associations.
    commitment
        Handler of the archives' reports on storage commitment, if they are asked.
    report
        Called with a message about each kind of refusal.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        aet: str,
        address: tuple[str, int],
        senders: Sequence[Sender],
        counters: Counters,
        report: Callable[[str], None],
        limits: Limits,
        tls: ssl.SSLContext | None = None,
        commitment: Callable[[Any], tuple[int, None]] | None = None,
    ) -> None:
        self._spool = spool
        self._senders = senders
        self._counters = counters
        self._report = report
        self._reported: dict[str, float] = {}
        self._aet = aet
        ae = AE(ae_title=aet)
        ae.require_called_aet = True
        ae.maximum_pdu_size = MAX_PDU
        ae.maximum_associations = limits.associations
        ae.acse_timeout = limits.request_s
        ae.dimse_timeout = ae.network_timeout = limits.timeout_s
        ae.add_supported_context(Verification)
        # The first one that the sender offers is used.
        syntaxes = sorted(dicom.transfer_syntaxes(), key=lambda syntax: syntax != ExplicitVRLittleEndian)
        for sop_class in STORAGE_CLASSES:
            ae.add_supported_context(sop_class, syntaxes)
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._check_sender),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_ACCEPTED, lambda event: counters.add("associations", "accepted")),
            (evt.EVT_REJECTED, lambda event: counters.add("associations", "rejected")),
            (evt.EVT_ABORTED, lambda event: counters.add("associations", "aborted")),
        ]
        if commitment is not None:
            ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
            handlers.append((evt.EVT_N_EVENT_REPORT, commitment))
        try:
            self._server = ae.make_server(
                address,
                ssl_context=tls,
                evt_handlers=handlers,
                server_class=BoundedServer,
                limits=limits,
                is_known=self._is_known,
                refused=self._refuse,
            )
        except OSError as error:
            raise UsageError(
                f"{address[0]}:{address[1]}: cannot listen ({error.strerror})", "Choose another --port or --bind"
            ) from error
        ae._servers.append(self._server)  # ``shutdown`` removes it from there

    @property
    def port(self) -> int:
        """The port on which the node listens."""
        return int(self._server.server_address[1])

    @property
    def name(self) -> str:
        """The address of the node, with the port on which it really listens."""
        return str(DicomAddress(self._aet, str(self._server.server_address[0]), self.port))

    @property
    def associations(self) -> int:
        """Associations that are open now."""
        return len(self._server.active_associations)

    def serve(self) -> None:
        """Accept associations until ``stop``. Meant for a thread of its own."""
        self._server.serve_forever(poll_interval=0.5)

    def stop(self) -> None:
        """Accept no more associations, and abort those that are open: their senders repeat what is not acknowledged."""
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()

    def _is_known(self, address: str) -> bool:
        return any(sender.is_from(address) for sender in self._senders)

    def _check_sender(self, event: Any) -> None:
        """Reject an association unless its AE title may come from its address."""
        association = event.assoc
        aet = str(association.requestor.primitive.calling_ae_title).strip(" ")
        address = str(association.requestor.address)
        if any(sender.allows(aet, address) for sender in self._senders):
            return
        association.acse.send_reject(*_NOT_ALLOWED)
        self._counters.add("associations", "rejected")
        self._refuse(f"--allow does not name the AE title {aet!r}", address)
        association.kill()

    def _store(self, event: Any) -> int:
        """Answer a C-STORE request. Success means that the instance is on disk."""
        try:
            request, syntax = event.request, str(event.context.transfer_syntax)
            outcome = self._spool.store(
                str(request.AffectedSOPInstanceUID),
                syntax,
                _PREAMBLE + encode_file_meta(event.file_meta),
                event.encoded_dataset(include_meta=False),
            )
        except OSError as error:
            full = error.errno in DISK_ERRORS or error.errno == errno.ENOENT  # or the disk is not mounted
            status = _OUT_OF_RESOURCES if full else _PROCESSING_FAILURE
            return self._refuse_instance(f"the spool cannot be written ({error.strerror})", status)
        except MemoryError:
            return self._refuse_instance("the memory is used up. Lower --max-associations", _OUT_OF_RESOURCES)
        except Exception as error:  # noqa: BLE001 (pynetdicom would refuse the instance without a word)
            return self._refuse_instance(fault(error), _PROCESSING_FAILURE)
        self._counters.add("instances", outcome)
        return _SUCCESS

    def _refuse_instance(self, reason: str, status: int) -> int:
        self._counters.add("instances", "refused")
        self._remind(f"an instance was refused: {reason}")
        return status

    def _refuse(self, reason: str, address: str) -> None:
        self._counters.add("connections", "refused")
        self._remind(f"a connection from {address} was refused: {reason}")

    def _remind(self, message: str) -> None:
        """Report a message, but not again and again: a peer that repeats its attempts must not fill the log."""
        now = time.monotonic()
        if now - self._reported.get(message, -_REMIND_S) < _REMIND_S:
            return
        if len(self._reported) >= _MAX_REMEMBERED:
            self._reported.clear()
        self._reported[message] = now
        self._report(message)
