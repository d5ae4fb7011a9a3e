"""What the checks of the node need: a node and an Orthanc as processes, series to send, and a sender."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from benchmarks.processes import free_port, resident_bytes
from mri_edge.authoring.writer import new_bundle
from mri_edge.bundles.manifest import Artifact, Creation, Manifest, Preprocessing, TensorSpec, Training

AET = "MRIEDGE"
MR = "1.2.840.10008.5.1.4.1.1.4"
SECRET = "Zzyzx^Quentin"  # noqa: S105 (a name that no message may contain)
PROGRAM = Path(sys.executable).with_name("mri-edge")


def make_bundle(folder: Path) -> Path:
    """Write a bundle for the fake engine, to which every slice is a tumor, so that every series gets a report."""
    manifest = Manifest(
        name="fake",
        version="1",
        labels=("no tumour", "tumour"),
        positive=1,
        threshold=0.001,
        preprocessing=Preprocessing(),
        artifacts=(),
        creation=Creation("2026-01-01T00:00:00+00:00", "benchmark", "0", None, {}, "any"),
        training=Training(
            recipe="none",
            seed=0,
            backbone="none",
            backbone_weights="random",
            backbone_sha256="0" * 64,
            data_fingerprint="0" * 64,
            split="none",
            split_fingerprint="0" * 64,
            train_images=0,
            test_images=0,
            classes={"no tumour": ["no"], "tumour": ["yes"]},
        ),
    )
    image, output = TensorSpec("image", "uint8", (None, 128, 128, 3)), TensorSpec("p", "float32", (None, 2))
    with new_bundle(folder, manifest) as writer:
        writer.path("model.fake").write_text('{"input": [128, 128, 3], "classes": 2}')
        writer.add_artifact(Artifact("model.fake", "fake", "float32", 0, "", image, output))
    return folder


def instance(series: int, number: int, *, size: int = 256, **values: Any) -> Dataset:
    """Return one axial MR slice with its own pixels. ``values`` replaces elements; None removes one."""
    rows, columns = np.mgrid[:size, :size]
    head = ((rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (0.4 * size) ** 2) * 800
    noise = np.random.default_rng(series * 10_000 + number).integers(0, 400, (size, size))
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = MR, f"2.25.1{series:04d}{number:06d}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"2.25.3{series:04d}", f"2.25.2{series:04d}"
    dataset.PatientName = dataset.PatientID = dataset.AccessionNumber = SECRET
    dataset.PatientBirthDate, dataset.PatientSex, dataset.StudyDate = "19700101", "F", "20260101"
    dataset.StudyTime, dataset.StudyID = "120000", "1"
    dataset.Modality, dataset.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M", "ND"]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-size / 2, -size / 2, 5.0 * number]
    dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 5
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = size
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.WindowCenter, dataset.WindowWidth = 600, 1200
    dataset.PixelData = (head + noise).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def write_series(folder: Path, series: int, slices: int, *, size: int = 256) -> list[Path]:
    """Write the slices of a series as files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{series:04d}-{number:04d}.dcm" for number in range(slices)]
    for number, path in enumerate(paths):
        instance(series, number, size=size).save_as(path, enforce_file_format=True)
    return paths


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """Wait until a condition is true, and return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)
    return value


class NodeProcess:
    """``mri-edge node`` as a process that can be killed and started again. ``limit_s``: for its start and its end."""

    def __init__(
        self, folder: Path, bundle: Path, *options: object, port: int | None = None, limit_s: float = 120
    ) -> None:
        self.spool = folder / "spool"
        self.log = folder / "node.log"
        self.port = port or free_port()
        self.options = [str(option) for option in options]
        self.bundle = bundle
        self.limit_s = limit_s
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, program: Sequence[object] = (PROGRAM,), may_end: bool = False, **environment: str) -> None:
        """Start it, and wait until it listens, or ends if it ``may_end``."""
        before = self.log.read_text().count("listening") if self.log.exists() else 0
        command = [*program, "node", "--spool", self.spool, "--port", self.port, "--model", self.bundle]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in (*command, "--threads", 1, *self.options)],
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )
        atexit.register(self.process.kill)  # if a check fails

        def listens() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                if may_end:
                    return True
                raise RuntimeError(f"the node ended: {self.log.read_text()[-2000:]}")
            return self.log.read_text().count("listening") > before

        wait_for(listens, "the node listens", self.limit_s)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=self.limit_s)

    def files(self) -> list[Path]:
        """Every acknowledged instance."""
        folders = ("incoming", "series", "done", "conflicts", "failed")
        return [path for folder in folders for path in (self.spool / folder).rglob("*.dcm") if path.name[0] != "."]

    def answers(self) -> list[dict[str, Any]]:
        """Every answer in the outbox and in ``sent``."""
        paths = [path for folder in ("outbox", "sent") for path in (self.spool / folder).glob("[!.]*/answer.json")]
        return [json.loads(path.read_text()) for path in sorted(paths)]

    def memory(self) -> int:
        """Return the resident memory in bytes."""
        assert self.process is not None
        return resident_bytes(self.process.pid)


class Orthanc:
    """An Orthanc with the DICOMweb plugin, as an archive and as a sender."""

    def __init__(self, folder: Path, node_port: int) -> None:
        self.folder = folder
        self.port, self.http = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http}"
        self.process: subprocess.Popen[bytes] | None = None
        plugins = Path("/usr/share/orthanc/plugins")
        self.has_web = any(plugins.glob("*DicomWeb*"))
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": "archive",
            "StorageDirectory": str(folder / "store"),
            "IndexDirectory": str(folder / "store"),
            "HttpPort": self.http,
            "DicomPort": self.port,
            "DicomAet": "ORTHANC",
            "DicomAlwaysAllowFind": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomModalities": {"node": [AET, "127.0.0.1", node_port]},
            "Plugins": [str(plugins)] if self.has_web else [],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))

    @property
    def address(self) -> str:
        """Where it takes C-STORE."""
        return f"ORTHANC@127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
        with open(self.folder / "orthanc.log", "ab") as log:
            self.process = subprocess.Popen(
                [program, str(self.folder / "orthanc.json")], stdout=log, stderr=log, cwd=self.folder
            )
        atexit.register(self.process.kill)  # if a check fails
        wait_for(self._answers, "Orthanc answers")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError((self.folder / "orthanc.log").read_text()[-2000:])
        try:
            self.get("/system")
        except OSError:
            return False
        return True

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, and wait for the end."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(timeout=60)

    def get(self, path: str, data: Any = None) -> Any:
        """Return the JSON, or the bytes of a file, at a path of its REST interface."""
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen(f"{self.url}{path}", body, timeout=60) as response:  # noqa: S310 (http, local)
            content = response.read()
        return json.loads(content) if "json" in response.headers.get("Content-Type", "") else content

    def find(self, modality: str) -> list[Dataset]:
        """Return the stored objects of a modality."""
        names = self.get("/tools/find", {"Level": "Instance", "Query": {"Modality": modality}})
        return [dcmread(BytesIO(self.get(f"/instances/{name}/file"))) for name in names]

    def reported_series(self) -> list[str]:
        """Return the identifier of the series that each stored report is about."""
        return [
            str(report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].SeriesInstanceUID)
            for report in self.find("SR")
        ]


def associate(
    port: int, *, aet: str = "SCANNER", called: str = AET, classes: Sequence[str] = (MR,), timeout_s: float = 60
) -> Any:
    """Open an association to a node on this machine, as a scanner does. ``timeout_s``: longest wait for a response."""
    from pynetdicom import AE

    ae = AE(ae_title=aet)
    ae.acse_timeout = ae.network_timeout = 60
    ae.dimse_timeout = timeout_s
    for sop_class in classes:
        ae.add_requested_context(sop_class, ExplicitVRLittleEndian)
    return ae.associate("127.0.0.1", port, ae_title=called)


def send_until_acknowledged(port: int, datasets: Iterator[Dataset], acknowledged: Callable[[str], None]) -> None:
    """Send each data set until it is acknowledged, over new associations when one ends, as a scanner does."""
    association = None
    for dataset in datasets:
        while True:
            if association is None or not association.is_established:
                association = associate(port, timeout_s=3)  # pynetdicom waits as long if the connection ends
                if not association.is_established:
                    time.sleep(0.2)
                    continue
            try:
                status = association.send_c_store(dataset).get("Status")
            except (RuntimeError, ValueError):
                status = None
            if status == 0:
                acknowledged(str(dataset.SOPInstanceUID))
                break
            if status is not None:  # out of resources: try again later
                time.sleep(0.2)
    if association is not None and association.is_established:
        association.release()


class FakeArchive:
    """An archive in this process that takes reports. ``status`` is its answer to each object."""

    def __init__(self, port: int | None = None, node_port: int | None = None) -> None:
        from pynetdicom import AE, evt
        from pynetdicom.sop_class import StorageCommitmentPushModel

        self.port = port or free_port()
        self.status = 0x0000
        self.confirms = True
        self.received: list[Dataset] = []
        self.associations = 0
        self._node_port = node_port
        self._threads: list[threading.Thread] = []
        ae = AE(ae_title="ARCHIVE")
        for sop_class in ("1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"):
            ae.add_supported_context(sop_class)
        ae.add_supported_context(StorageCommitmentPushModel)
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, self._commit),
            (evt.EVT_ACCEPTED, self._count),
        ]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    @property
    def address(self) -> str:
        """Where it takes C-STORE."""
        return f"ARCHIVE@127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it."""
        for thread in self._threads:
            thread.join(timeout=60)
        self._server.shutdown()

    def instances(self) -> list[str]:
        """Return the identifiers of what it holds; an object that came twice counts once."""
        return sorted({str(dataset.SOPInstanceUID) for dataset in self.received})

    def reported_series(self) -> list[str]:
        """Return the identifier of the series that each report is about."""
        reports = {str(found.SOPInstanceUID): found for found in self.received if found.Modality == "SR"}
        return sorted(
            str(report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].SeriesInstanceUID)
            for report in reports.values()
        )

    def _count(self, event: Any) -> None:
        self.associations += 1

    def _store(self, event: Any) -> int:
        if self.status == 0:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.received.append(dataset)
        return self.status

    def _commit(self, event: Any) -> tuple[int, None]:
        """Accept the request, and report over another association, as archives do."""
        if self.confirms:
            thread = threading.Thread(target=self._report, args=(event.action_information,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return 0x0000, None

    def _report(self, request: Dataset) -> None:
        from pynetdicom import AE
        from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
        from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid, role.scu_role, role.scp_role = StorageCommitmentPushModel, False, True
        ae = AE(ae_title="ARCHIVE")
        ae.add_requested_context(StorageCommitmentPushModel)
        association = ae.associate("127.0.0.1", self._node_port or 0, ae_title=AET, ext_neg=[role])
        if association.is_established:
            held = set(self.instances())
            stored = [item for item in request.ReferencedSOPSequence if item.ReferencedSOPInstanceUID in held]
            report = Dataset()
            report.TransactionUID, report.ReferencedSOPSequence = request.TransactionUID, stored
            complete = len(stored) == len(request.ReferencedSOPSequence)
            if not complete:
                report.FailedSOPSequence = []
            association.send_n_event_report(
                report, 1 if complete else 2, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
            association.release()
