"""Read and write the device profile: what ``mri-edge tune`` measured on this device, and the choice that follows.

It is one small JSON file for each bundle. Every ``predict`` reads it, so checking whether it is still valid takes
microseconds, and reading it needs only ``json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mri_edge import __version__
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.decode import parse, read, to_plain
from mri_edge.device.cpu import available_cpus
from mri_edge.device.dirs import profile_folder
from mri_edge.device.machine import cpu, installed
from mri_edge.engines import engine_files
from mri_edge.errors import ManifestError
from mri_edge.storage.atomic import atomic_write, fingerprint

_LIMIT = 4 << 20  # bytes; a hundred measurements take about 15 kB


@dataclass(frozen=True)
class Measurement:
    """Median milliseconds of ``runs`` runs of one candidate, each on ``batch`` scans in memory.

    ``provider`` is the requested provider, ``ran`` the one that started.
    """

    artifact: str
    engine: str
    provider: str
    ran: str
    threads: int
    batch: int
    ms: float
    runs: int

    @property
    def ms_per_scan(self) -> float:
        """Milliseconds for one scan."""
        return self.ms / self.batch


@dataclass(frozen=True)
class Profile:
    """All measurements of one bundle on one device, and the hardware and libraries for which they are valid."""

    bundle: str
    cpu: str
    cores: int
    libraries: dict[str, str]
    created: str
    measurements: tuple[Measurement, ...]

    def best(
        self,
        *,
        provider: str = "auto",
        artifact: str | None = None,
        engine: str | None = None,
        threads: int | None = None,
        many: bool = True,
    ) -> Measurement | None:
        """Return the fastest measurement with the given properties, or None.

        With ``many`` the time per scan counts, at any batch size; otherwise the time of a single scan.
        """
        candidates = [
            measurement
            for measurement in self.measurements
            if measurement.provider == provider
            and artifact in (None, measurement.artifact)
            and engine in (None, measurement.engine)
            and threads in (None, measurement.threads)
            and (many or measurement.batch == 1)
        ]
        return min(candidates, key=lambda measurement: measurement.ms_per_scan, default=None)

    def staleness(self) -> str | None:
        """Return why the measurements are no longer valid on this machine, or None."""
        if str(cpu()) != self.cpu:
            return f"it was made on another CPU, {self.cpu}"
        if (cores := available_cpus()) != self.cores:
            return f"it was made with {self.cores} cores, and {cores} may be used now"
        libraries = library_versions()
        changed = [
            f"{name} {self.libraries.get(name, 'not installed')} is now {libraries.get(name, 'not installed')}"
            for name in sorted({*self.libraries, *libraries})
            if self.libraries.get(name) != libraries.get(name)
        ]
        return "; ".join(changed) or None

    def save(self, folder: Path | None = None) -> Path:
        """Write the profile, with the valid measurements of other providers, and return its path.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        path = _path(self.bundle, folder)
        with suppress(OSError):  # atomic_write reports it with a better message
            path.parent.mkdir(parents=True, exist_ok=True)
        whole = replace(self, measurements=(*self.measurements, *self._others(path)))
        atomic_write(path, json.dumps(to_plain(whole), indent=1) + "\n")
        return path

    def _others(self, path: Path) -> list[Measurement]:
        try:
            before = _read(path)
        except ManifestError:  # it will be replaced
            return []
        if before is None or before.staleness():
            return []
        measured = {measurement.provider for measurement in self.measurements}
        return [measurement for measurement in before.measurements if measurement.provider not in measured]


def load_profile(bundle: Bundle, folder: Path | None = None) -> Profile | None:
    """Return the profile of a bundle on this device, even a stale one; None if there is none.

    Raises
    ------
    ManifestError
        The file exists but is not a profile.
    """
    return _read(_path(fingerprint_of(bundle), folder))


def _read(path: Path) -> Profile | None:
    try:
        with open(path, "rb") as file:
            text = file.read(_LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error
    profile = read(Profile, parse(text, str(path)), str(path))
    if not all(
        measurement.batch >= 1 and measurement.threads >= 1 and measurement.ms > 0
        for measurement in profile.measurements
    ):
        raise ManifestError(f"{path}: has impossible measurements")
    return profile


def fingerprint_of(bundle: Bundle) -> str:
    """Return a SHA-256 over the name, hash and parity verdict of every artifact, which changes with any of them."""
    return fingerprint(
        f"{artifact.file}\0{artifact.sha256}\0{artifact.parity.verdict if artifact.parity else ''}"
        for artifact in bundle.manifest.artifacts
    )


def library_versions() -> dict[str, str]:
    """Return the versions of mri-edge and of every installed package that an engine may use."""
    return {"mri-edge": __version__, **installed(_packages())}


def _packages() -> Iterable[str]:
    return (package for engine in engine_files().values() for package in engine.PACKAGES)


def _path(bundle: str, folder: Path | None) -> Path:
    return (folder or profile_folder()) / f"{bundle[:32]}.json"
