"""Replay golden values: compare this device's results, stage by stage, with those recorded in the bundle.

The stages are file -> decoded pixels -> resized tensor -> probabilities. The input of each stage is the recorded output
of the previous one, so that the first stage that differs is the cause. Only the label is computed end to end here.
The probabilities are those of the artifact itself, so a recalibration changes no golden value; the labels follow it.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.decode import parse, parse_array, read
from mri_edge.bundles.manifest import Artifact, Document
from mri_edge.device.native import silence_stderr
from mri_edge.engines import Engine, ModelFile, Probabilities, engine_files, engine_for, open_engine
from mri_edge.errors import EngineError, InputError, IntegrityError, ManifestError, ProviderUnavailable
from mri_edge.scans import readers
from mri_edge.scans.frame import Pixels, as_rgb
from mri_edge.scans.readers import dicom, picture

from .prediction import decide, recalibrated

_log = logging.getLogger(__name__)

RECORD = "golden.json"
ARRAYS = "golden.npz"
FOLDER = "golden/"
NOTICE = FOLDER + "NOTICE"

SCHEMA_VERSION = 1
_ARRAYS_LIMIT = 256 << 20  # bytes when unpacked; six demo scans take about 2 MB

_Stage = Literal["hashes", "pixels", "tensor", "probabilities", "label"]
_Status = Literal["same", "near", "differs", "not tried"]

# The JPEG standard does not fix the rounding of the inverse transform. libjpeg-turbo with its accurate transform gives
# the same result everywhere (Pillow, OpenCV and TensorFlow agreed on 257 of 257 scans); other libraries may differ by 1
# or 2. A decoder with the fast transform differs by 3 to 27, and that is reported.
_LOSSY = (".jpg", ".jpeg", ".webp")
_LOSSY_TOLERANCE = 2
# By the precision of the artifact. float32: kernels sum in different orders (ONNX Runtime, OpenVINO and
# LiteRT were at most 1.7e-6 apart on 253 scans). float16: 11 bits, and CPUs without it compute in float32.
# int8, dynamic: a value on the edge between two steps rounds either way in other kernels (ONNX Runtime
# and OpenVINO on one file: 0.013 apart at the 99th percentile of 253 scans, 0.0201 at most).
_TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "int8": 0.03, "dynamic": 0.03}
# Parts of the names of providers that may multiply float32 with 10 bits of precision, as float16 has (TensorFloat-32).
_ACCELERATORS = ("cuda", "tensorrt", "coreml", "directml", "dml", "gpu", "npu")


@dataclass(frozen=True)
class Check:
    """One comparison. ``near``: not equal, but the difference is within the tolerance in ``detail``."""

    stage: _Stage
    subject: str
    engine: str
    status: _Status
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """All comparisons, in the order of the stages."""

    checks: tuple[Check, ...]

    @property
    def first_difference(self) -> Check | None:
        """The earliest comparison that failed, or None."""
        return next((check for check in self.checks if check.status == "differs"), None)

    @property
    def recorded(self) -> bool:
        """Whether there was a record to compare with, and every hash was correct."""
        return any(check.stage == "pixels" for check in self.checks)

    @property
    def replayed(self) -> int:
        """Number of runs of an artifact in an engine."""
        return sum(check.stage == "probabilities" and check.status != "not tried" for check in self.checks)


@dataclass(frozen=True)
class Facts:
    """``golden.json``: the scans in order, the engine that computed each artifact's values, and the machine."""

    schema_version: int
    scans: tuple[str, ...]
    engines: dict[str, str]
    machine: str
    libraries: dict[str, str]


@dataclass(frozen=True)
class _Golden:
    """The golden record: the scans as listed files, their pixels and tensors, and the probabilities by artifact."""

    scans: tuple[Document, ...]
    pixels: tuple[Pixels, ...]
    tensors: Pixels
    probabilities: dict[str, Probabilities]


def is_golden(file: str) -> bool:
    """Whether a file of a bundle belongs to the golden record."""
    return file in (RECORD, ARRAYS) or file.startswith(FOLDER)


def tolerance_of(precision: str, provider: str) -> float:
    """Return how far probabilities may differ from the recorded ones, by an artifact's precision and the provider."""
    tolerance = _TOLERANCES[precision]
    is_accelerated = any(name in provider.lower() for name in _ACCELERATORS)
    return max(tolerance, _TOLERANCES["float16"]) if is_accelerated else tolerance


def replay(bundle: Bundle, provider: str = "cpu", opened: tuple[Artifact, Engine] | None = None) -> Report:
    """Compare this device with the record: first the hashes, then each stage, in every installed engine.

    Without a record only the hashes are checked. If a hash differs, nothing else is tried.

    Parameters
    ----------
    provider
        Runs the artifacts. Where it does not start, they are not tried.
    opened
        An artifact and the engine that has opened it, on any provider: only this engine is compared, as it is, so that
        a server is checked with what it uses.

    Raises
    ------
    ManifestError
        The record is not valid, although its hash is correct.
    """
    checks = list(_check_hashes(bundle))
    if all(check.status == "same" for check in checks) and (golden := _read(bundle)):
        decoded = []
        for scan, expected in zip(golden.scans, golden.pixels, strict=True):
            check, pixels = _replay_decode(bundle, scan, expected)
            checks.append(check)
            decoded.append(pixels)
        checks += _replay_resize(bundle, golden)
        if opened is None:
            checks += _replay_engines(bundle, golden, decoded, provider)
        else:
            checks += _replay_opened(bundle, golden, *opened)
    order = ("hashes", "pixels", "tensor", "probabilities", "label")
    return Report(tuple(sorted(checks, key=lambda check: order.index(check.stage))))


def _check_hashes(bundle: Bundle) -> Iterator[Check]:
    for entry in bundle.entries():
        try:
            bundle.read(entry)
            yield Check("hashes", entry.file, "", "same")
        except IntegrityError as error:
            yield Check("hashes", entry.file, "", "differs", str(error))


def _replay_decode(bundle: Bundle, scan: Document, expected: Pixels) -> tuple[Check, Pixels]:
    is_dicom = scan.file.lower().endswith(dicom.SUFFIXES)
    if is_dicom and (reason := dicom.missing()):
        return Check("pixels", scan.file, "", "not tried", reason), expected
    try:
        content = bundle.read(scan)
        pixels = readers.load(content) if is_dicom else picture.load(content)
    except InputError as error:
        return Check("pixels", scan.file, "", "differs", str(error)), expected
    tolerance = _LOSSY_TOLERANCE if scan.file.lower().endswith(_LOSSY) else 0
    reason = f"another build of the JPEG or WebP decoder rounds differently; up to {tolerance} is accepted"
    return _compare_pixels("pixels", scan.file, pixels, expected, tolerance, reason), pixels


def _replay_resize(bundle: Bundle, golden: _Golden) -> Iterator[Check]:
    for scan, pixels, expected in zip(golden.scans, golden.pixels, golden.tensors, strict=True):
        # Integer arithmetic gives the same result on every machine.
        yield _compare_pixels(
            "tensor", scan.file, bundle.manifest.preprocessing.resize_picture(pixels), expected, 0, ""
        )


def _replay_engines(bundle: Bundle, golden: _Golden, decoded: list[Pixels], provider: str) -> Iterator[Check]:
    preprocessing, manifest = bundle.manifest.preprocessing, bundle.manifest
    tensors = np.stack([preprocessing.resize_picture(pixels) for pixels in decoded])
    for artifact in manifest.artifacts:
        if artifact.file not in golden.probabilities:
            continue
        expected = golden.probabilities[artifact.file]
        engines = [file for file in engine_files().values() if artifact.file.endswith(file.SUFFIXES)]
        for file in engines:
            if reason := file.missing():
                yield Check("probabilities", artifact.file, file.NAME, "not tried", reason)
                continue
            try:
                found = probabilities_of(bundle, artifact, file.NAME, golden.tensors, provider)
                same_input = np.array_equal(tensors, golden.tensors)
                end_to_end = found if same_input else probabilities_of(bundle, artifact, file.NAME, tensors, provider)
            except ProviderUnavailable as error:
                yield Check("probabilities", artifact.file, file.NAME, "not tried", str(error))
                continue
            except EngineError as error:
                yield Check("probabilities", artifact.file, file.NAME, "differs", str(error))
                continue
            tolerance = tolerance_of(artifact.precision, provider)
            yield _compare_probabilities(artifact, file.NAME, found, expected, tolerance)
            yield _compare_labels(bundle, golden.scans, artifact, file.NAME, end_to_end, expected)


def _replay_opened(bundle: Bundle, golden: _Golden, artifact: Artifact, engine: Engine) -> Iterator[Check]:
    expected = golden.probabilities.get(artifact.file)
    if expected is not None:
        try:
            found = engine.run(golden.tensors)
        except EngineError as error:
            yield Check("probabilities", artifact.file, engine.name, "differs", str(error))
            return
        tolerance = tolerance_of(artifact.precision, engine.provider)
        yield _compare_probabilities(artifact, engine.name, found, expected, tolerance)
        yield _compare_labels(bundle, golden.scans, artifact, engine.name, found, expected)


def _compare_pixels(
    stage: Literal["pixels", "tensor"], subject: str, found: Pixels, expected: Pixels, tolerance: int, reason: str
) -> Check:
    if found.shape != expected.shape:
        return Check(stage, subject, "", "differs", f"{found.shape} in place of {expected.shape}")
    difference = np.abs(found.astype(np.int16) - expected)
    largest = int(difference.max(initial=0))
    if largest == 0:
        return Check(stage, subject, "", "same")
    detail = f"up to {largest} of 255 apart, at {np.count_nonzero(difference):,} of {difference.size:,} values"
    if largest <= tolerance:
        return Check(stage, subject, "", "near", f"{detail}: {reason}")
    return Check(stage, subject, "", "differs", detail)


def _compare_probabilities(
    artifact: Artifact, engine: str, found: Probabilities, expected: Probabilities, tolerance: float
) -> Check:
    difference = float(np.abs(found - expected).max())
    if difference == 0:
        return Check("probabilities", artifact.file, engine, "same")
    detail = f"up to {difference:.2g} apart; {tolerance:g} is expected for {artifact.precision}"
    # NaN is not <= the tolerance, so it differs.
    return Check("probabilities", artifact.file, engine, "near" if difference <= tolerance else "differs", detail)


def _compare_labels(
    bundle: Bundle,
    scans: tuple[Document, ...],
    artifact: Artifact,
    engine: str,
    found: Probabilities,
    expected: Probabilities,
) -> Check:
    manifest = bundle.manifest
    found, expected = recalibrated(found, manifest), recalibrated(expected, manifest)
    rows = zip(
        scans,
        decide(found, manifest.positive, manifest.threshold),
        decide(expected, manifest.positive, manifest.threshold),
        strict=True,
    )
    flipped = [
        f"{scan.file}: {manifest.labels[now]} in place of {manifest.labels[then]}"
        for scan, now, then in rows
        if now != then
    ]
    return Check("label", artifact.file, engine, "differs" if flipped else "same", "; ".join(flipped))


def engine_here(artifact: Artifact) -> str | None:
    """Return the preferred engine of an artifact, or None if it is not installed or none opens such files."""
    try:
        file = engine_for(artifact.file)
    except EngineError:
        return None
    return None if file.missing() else file.NAME


def probabilities_of(
    bundle: Bundle, artifact: Artifact, engine: str, tensors: Pixels, provider: str = "cpu"
) -> Probabilities:
    """Run one artifact: uint8 (N, H, W, 3) to float32 (N, classes). Raises EngineError, or ProviderUnavailable."""
    start = perf_counter()
    with silence_stderr():  # LiteRT announces its delegate there
        opened = open_engine(ModelFile.of(bundle, artifact), engine=engine, provider=provider)
    _log.info(
        "%s, engine %s, provider %s, threads %d; opened in %.0f ms",
        artifact.file,
        engine,
        opened.provider,
        opened.threads,
        (perf_counter() - start) * 1e3,
    )
    with closing(opened):
        return opened.run(tensors)


def _read(bundle: Bundle) -> _Golden | None:
    listed = {document.file: document for document in bundle.manifest.documents}
    if RECORD not in listed:
        return None
    origin = bundle.folder / RECORD
    facts = read(Facts, parse(bundle.read(listed[RECORD]), str(origin)), str(origin))
    if facts.schema_version != SCHEMA_VERSION:
        raise ManifestError(f"{origin}: schema version must be {SCHEMA_VERSION}. Received: {facts.schema_version}")
    try:
        scans = tuple(listed[name] for name in facts.scans)
        arrays = _arrays(bundle.read(listed[ARRAYS]))
        pixels = tuple(_three_channels(arrays[f"pixels-{i}"]) for i in range(len(scans)))
        probabilities = {file: arrays[f"probabilities-{file}"] for file in facts.engines}
        golden = _Golden(scans, pixels, arrays["tensors"], probabilities)
    except Exception as error:  # zipfile, zlib and NumPy raise many types of exceptions for damaged files
        raise ManifestError(f"{origin}: not a golden record ({error!r})", "Record it again") from error
    size = (len(scans), bundle.manifest.preprocessing.height, bundle.manifest.preprocessing.width, 3)
    shape = (len(scans), len(bundle.manifest.labels))
    matches = (
        golden.tensors.dtype == np.uint8
        and golden.tensors.shape == size
        and all(values.dtype == np.float32 and values.shape == shape for values in probabilities.values())
    )
    if not scans or not matches:
        raise ManifestError(f"{origin}: its arrays do not match the manifest", "Record it again")
    return golden


def _arrays(content: bytes) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if size > _ARRAYS_LIMIT:
            raise ValueError(f"{ARRAYS} unpacks to {size:,} bytes")
        # zipfile never reads more of a member than its declared size.
        return {member.filename.removesuffix(".npy"): parse_array(archive.read(member)) for member in members}


def _three_channels(pixels: NDArray[Any]) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}")
    return as_rgb(pixels) if pixels.ndim == 2 else pixels
