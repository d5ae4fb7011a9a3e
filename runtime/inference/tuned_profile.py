"""The device profile: what ``mri-edge tune`` measured here, and which choice follows from it.

One small JSON file a bundle, read by every ``predict``: so its validity is checked by facts that
cost microseconds, and nothing but ``json`` is needed to read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mri_edge import __version__
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.decode import parse, read
from mri_edge.device.cpu import available_cpus
from mri_edge.device.dirs import profile_folder
from mri_edge.device.machine import cpu, installed
from mri_edge.engines import engine_files
from mri_edge.errors import ManifestError
from mri_edge.storage.atomic import atomic_write, fingerprint

_LIMIT = 4 << 20  # bytes; a hundred measurements are some 15 kB


@dataclass(frozen=True)
class Measurement:
    """One candidate: median milliseconds of a run on ``batch`` scans in memory, over ``runs`` runs.

    ``provider`` is what was asked for, ``ran`` what came up.
    """

    artefact: str
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
    """All measurements of one bundle on one device, and the facts that they hold for."""

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
        artefact: str | None = None,
        engine: str | None = None,
        threads: int | None = None,
        many: bool = True,
    ) -> Measurement | None:
        """The fastest measurement among those that fit what is given; None if none does.

        ``many``: by time a scan over all batch sizes; else by time of a single scan.
        """
        fitting = [
            one
            for one in self.measurements
            if one.provider == provider
            and artefact in (None, one.artefact)
            and engine in (None, one.engine)
            and threads in (None, one.threads)
            and (many or one.batch == 1)
        ]
        return min(fitting, key=lambda one: one.ms_per_scan, default=None)

    def staleness(self) -> str | None:
        """Why the measurements no longer hold on this machine, or None."""
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
        """Write to the profile folder, beside what still holds of other providers; returns the file.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        path = _path(self.bundle, folder)
        with suppress(OSError):  # atomic_write says it better
            path.parent.mkdir(parents=True, exist_ok=True)
        whole = replace(self, measurements=(*self.measurements, *self._others(path)))
        atomic_write(path, json.dumps(asdict(whole), indent=1) + "\n")
        return path

    def _others(self, path: Path) -> list[Measurement]:
        try:
            before = _read(path)
        except ManifestError:  # it is replaced
            return []
        if before is None or before.staleness():
            return []
        measured = {one.provider for one in self.measurements}
        return [one for one in before.measurements if one.provider not in measured]


def load_profile(bundle: Bundle, folder: Path | None = None) -> Profile | None:
    """The profile of a bundle on this device, stale or not; None without one.

    Raises
    ------
    ManifestError
        The file is there but is no profile.
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
    if not all(one.batch >= 1 and one.threads >= 1 and one.ms > 0 for one in profile.measurements):
        raise ManifestError(f"{path}: has measurements that cannot be")
    return profile


def fingerprint_of(bundle: Bundle) -> str:
    """SHA-256 over the artefacts: name, hash and parity verdict, so that any change of one is seen."""
    return fingerprint(
        f"{one.file}\0{one.sha256}\0{one.parity.verdict if one.parity else ''}" for one in bundle.manifest.artefacts
    )


def library_versions() -> dict[str, str]:
    """Version of mri-edge and of every installed package that an engine may use."""
    return {"mri-edge": __version__, **installed(_packages())}


def _packages() -> Iterable[str]:
    return (package for one in engine_files().values() for package in one.PACKAGES)


def _path(bundle: str, folder: Path | None) -> Path:
    return (folder or profile_folder()) / f"{bundle[:32]}.json"
