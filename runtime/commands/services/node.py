"""``mri-edge node``: a DICOM node between scanner and archive (PACS)."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mri_edge.commands.options import REQUIRE_SIGNATURE, model_options, port_option, reading_options
from mri_edge.commands.output import report
from mri_edge.commands.usage import DAY_S, NumberRange
from mri_edge.errors import UsageError, first_line

if TYPE_CHECKING:
    from mri_edge.inference.selection import RunOptions
    from mri_edge.services.dicom.addresses import Address, Sender
    from mri_edge.services.dicom.network import Limits

EXAMPLES = """\b
Examples:
  mri-edge node --spool spool/
  mri-edge node --spool spool/ --allow SCANNER1@10.1.2.3 --send-to PACS@10.1.2.4:104
  mri-edge node --spool spool/ --allow '*@10.1.2.0/24' --send-to https://pacs.example/dicom-web
  mri-edge node --status --spool spool/
"""
_FILE = click.Path(exists=True, dir_okay=False)
_MEMORY_PART = 4  # instances that are being received may take one part in so many of the memory


@click.command(epilog=EXAMPLES)
@click.option("--spool", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder of the node.")
@click.option("--aet", default="MRIEDGE", show_default=True, metavar="AET", help="AE title of the node.")
@port_option(11112)
@click.option(
    "--bind",
    metavar="ADDRESS",
    help="IP address to listen on. Default: 127.0.0.1, or with --allow every address of this machine.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="AET@CIDR",
    help="Who may send: an AE title, or *, and an IP address or network. Default: this machine. Repeatable.",
)
@click.option(
    "--settle",
    type=NumberRange(0, DAY_S),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="A series is complete when no instance came for this long.",
)
@click.option(
    "--send-to",
    multiple=True,
    metavar="ADDRESS",
    help="Archive for the results: AET@HOST:PORT, the same with /tls, or the URL of a DICOMweb service. Repeatable.",
)
@click.option(
    "--as",
    "kinds",
    default="sr",
    show_default=True,
    metavar="sr,sc",
    help="What to write: sr, a structured report; sc, heatmaps as Secondary Captures.",
)
@click.option("--dicom-negatives", is_flag=True, help="Also report series that are not positive, as Absent.")
@click.option("--any-plane", is_flag=True, help="Also classify series that are not axial.")
@click.option("--commit", is_flag=True, help="Keep each result until the archive has confirmed that it is stored.")
@click.option("--tls-cert", type=_FILE, metavar="FILE", help="Certificate of the node (PEM): TLS is required then.")
@click.option("--tls-key", type=_FILE, metavar="FILE", help="Private key of the certificate (PEM).")
@click.option("--tls-ca", type=_FILE, metavar="FILE", help="Authority (PEM) that signed the certificates of peers.")
@click.option(
    "--max-associations", type=click.IntRange(1, 500), default=20, show_default=True, help="Associations at a time."
)
@click.option(
    "--timeout",
    type=NumberRange(1, DAY_S),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="An association that is silent for this long is closed.",
)
@click.option("--status", is_flag=True, help="Show what the node has received and still has to send, then exit.")
@click.option("--json", "as_json", is_flag=True, help="With --status: print an object.")
@REQUIRE_SIGNATURE
@model_options
@reading_options
def node(
    spool: Path,
    aet: str,
    port: int,
    bind: str | None,
    allow: tuple[str, ...],
    settle: float,
    send_to: tuple[str, ...],
    kinds: str,
    dicom_negatives: bool,
    any_plane: bool,
    commit: bool,
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    max_associations: int,
    timeout: float,
    status: bool,
    as_json: bool,
    signed_by: str | None,
    model: str,
    run: RunOptions,
) -> None:
    """Receive series by DICOM, and send reports to an archive (PACS).

    An instance is on disk before it is acknowledged. When no instance of a series has come for --settle seconds, the
    series is classified, and a structured report is sent to each --send-to by C-STORE or STOW-RS. If an archive does
    not answer, results wait on disk and are sent again until it has them. Instances that come later lead to a new
    report that names the earlier one.

    The program may be killed at any moment: no instance is lost and no series gets two results. Instances stay in
    DIR/done/ and results in DIR/sent/ until you delete them. Only this machine may send unless --allow names others.

    SIGTERM ends the node with exit code 0, Ctrl-C with 130. It needs the extra node: pip install 'mri-edge[node]'.

    Research use only: not a medical device.
    """
    if status:
        _show_status(spool, as_json)
        return
    if as_json:
        raise UsageError("--json is for --status", "Add --status, or leave out --json")
    _check_extra()
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.commands.scans.dicom_output import parse_kinds
    from mri_edge.inference.classifier import Classifier
    from mri_edge.services.dicom.addresses import (
        LOOPBACK,
        check_bind,
        default_bind,
        parse_aet,
        parse_destination,
        parse_sender,
    )
    from mri_edge.services.dicom.archives import commitments, open_archives
    from mri_edge.services.dicom.network import client_tls, server_tls, silence_pynetdicom
    from mri_edge.services.dicom.node import Node
    from mri_edge.services.dicom.receiver import Receiver
    from mri_edge.services.dicom_results.results import DicomResults
    from mri_edge.services.model_check import check_model
    from mri_edge.services.stopping import stopped_by_signals
    from mri_edge.services.systemd import notify

    silence_pynetdicom()
    aet = parse_aet(aet)
    senders = [parse_sender(text) for text in allow]
    destinations = list(dict.fromkeys(parse_destination(text) for text in send_to))
    bind = bind or default_bind(senders)
    check_bind(bind, senders)
    _check_tls(tls_cert, tls_key, tls_ca, destinations)
    _check_commit(commit, destinations, senders)
    with ExitStack() as stack:
        classifier = stack.enter_context(Classifier.load_with(run, Bundle.open(model, signed_by=signed_by)))
        results = DicomResults(classifier, parse_kinds(kinds), negatives=dicom_negatives)
        check_model(classifier)
        try:
            tls = server_tls(tls_cert, tls_key, tls_ca) if tls_cert and tls_key else None
            sending_tls = client_tls(tls_cert, tls_key, tls_ca)
        except OSError as error:  # an SSLError is one
            raise UsageError(
                f"--tls-cert, --tls-key and --tls-ca cannot be used ({first_line(error)})",
                "Name PEM files that match, and a key without a pass phrase",
            ) from error
        archives = open_archives(destinations, aet=aet, tls=sending_tls, commit=commit, timeout_s=timeout)
        limits = _limits(max_associations, timeout)
        service = Node(
            classifier,
            results,
            spool,
            lambda folder, counters: Receiver(
                folder,
                aet=aet,
                address=(bind, port),
                senders=senders or LOOPBACK,
                counters=counters,
                report=report,
                limits=limits,
                tls=tls,
                commitment=commitments(archives) if commit else None,
            ),
            archives,
            settle_s=settle,
            plane="any" if any_plane else "axial",
            report=report,
        )
        received = stack.enter_context(stopped_by_signals(service.stop))
        service.run(ready=lambda: notify("READY=1"))
        notify("STOPPING=1")
        if signal.SIGINT in received:
            raise click.Abort
        report("stopped")


def _check_extra() -> None:
    for module in ("pydicom", "pynetdicom", "highdicom"):
        if find_spec(module) is None:
            raise UsageError(
                f"the node needs {module}, which is not installed", "Install it: pip install 'mri-edge[node]'"
            )


def _check_tls(certificate: str | None, key: str | None, authority: str | None, destinations: list[Address]) -> None:
    if (certificate is None) != (key is None):
        raise UsageError("--tls-cert and --tls-key belong together", "Name both files")
    if authority and not certificate and not any(address.tls for address in destinations):
        raise UsageError(
            "--tls-ca needs --tls-cert and --tls-key: without them the node takes connections without TLS",
            "Name all three, or an archive with TLS to send to",
        )


def _check_commit(commit: bool, destinations: list[Address], senders: list[Sender]) -> None:
    """Raise UsageError if no archive can confirm, or one would be rejected when it opens an association to do so."""
    from mri_edge.services.dicom.addresses import ANY_AET, DicomAddress

    archives = [address for address in destinations if isinstance(address, DicomAddress)]
    if commit and not archives:
        raise UsageError("--commit is for archives that take C-STORE", "Add --send-to AET@HOST:PORT")
    for archive in archives:
        allowed = any(sender.aet in (ANY_AET, archive.aet) for sender in senders)
        is_here = not senders and archive.host in ("127.0.0.1", "::1", "localhost")
        if commit and not allowed and not is_here:
            raise UsageError(
                f"--commit: {archive.aet} reports by an association of its own, and --allow does not name it",
                f"Add --allow {archive.aet}@ADDRESS",
            )


def _limits(associations: int, timeout_s: float) -> Limits:
    from mri_edge.device.machine import memory
    from mri_edge.services.dicom.network import Limits

    limits = Limits(associations=associations, timeout_s=timeout_s)
    found = memory()
    if found is None:
        return limits
    total = min(limits.total_bytes, found.usable // _MEMORY_PART)
    return replace(limits, total_bytes=total, instance_bytes=min(limits.instance_bytes, total))


def _show_status(spool: Path, as_json: bool) -> None:
    from mri_edge.services.dicom.status import as_text, survey

    found = survey(spool)
    click.echo(json.dumps(found) if as_json else as_text(found))
