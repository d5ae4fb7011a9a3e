"""Measure the energy of a run in joules, where the machine has a readable energy counter or power sensor.

A counter or sensor covers a whole package, module or board: its value includes idle power and all other programs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from threading import Event, Thread
from time import perf_counter

from .scenarios import RunOne, single_stream

_ROOT = Path("/")
# Sensors are read a few times a second, and RAPL counters are updated each millisecond, so a run must take some time.
_SECONDS = 2.0
_SENSOR_PERIOD = 0.05  # seconds; an INA3221 takes about this time for a new value with its usual averaging
_PROGRAM_PERIOD = 0.25  # seconds; starting a program takes CPU time

# Zones of RAPL, docs.kernel.org/power/powercap/powercap.html. AMD CPUs have the same names. Subzones (intel-rapl:0:0)
# are part of their package, and the zone "psys" contains the packages.
_RAPL_ZONES = "sys/class/powercap/intel-rapl:[0-9]*"
_PACKAGE = "package-"
# Rails of a Jetson, by the labels of its INA3221, docs.nvidia.com/jetson ("Software-Based Power Consumption Modeling").
# VDD_IN is the supply of the whole module. Jetson AGX has no such rail; there the rails of the processors are summed.
_JETSON_RAILS = (("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV"))
# Lines of "vcgencmd pmic_read_adc" on a Raspberry Pi 5: "VDD_CORE_A current(7)=1.42880000A", "VDD_CORE_V volt(15)=…V".
_PMIC_LINE = re.compile(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=(\d+\.\d+)[AV]")
_PMIC_TIMEOUT = 5  # seconds


class EnergyMeter(ABC):
    """Measures joules. ``source`` names what is measured, for the reader of the figure."""

    def __init__(self, source: str) -> None:
        self.source = source

    @abstractmethod
    def joules(self, action: Callable[[], object]) -> float | None:
        """Run ``action`` and return the energy that was used meanwhile; None if it could not be read."""

    def joules_per_query(self, run: RunOne, samples: int) -> float | None:
        """Run SingleStream for two seconds and return the energy of a query; None if it could not be read.

        This is a run of its own, because reading a sensor would change the latencies.
        """
        latencies: list[float] = []
        joules = self.joules(lambda: latencies.extend(single_stream(run, samples, seconds=_SECONDS, queries=1)))
        return None if joules is None else joules / len(latencies)


def find_meter(root: Path = _ROOT) -> EnergyMeter | None:
    """Return a meter for this machine; None if it has no counter or sensor that this process may read."""
    return _rapl(root) or _jetson(root) or _raspberry_pi(root)


@dataclass(frozen=True)
class _Zone:
    """A RAPL zone. Its counter, in microjoules, starts again at 0 after ``limit``."""

    counter: Path
    limit: int

    def read(self) -> int:
        return int(self.counter.read_text())


class _RaplMeter(EnergyMeter):
    """Reads counters before and after the action.

    A counter may wrap once meanwhile. The smallest range in use is 65 kJ, more than four minutes at 250 W.
    """

    def __init__(self, source: str, zones: Sequence[_Zone]) -> None:
        super().__init__(source)
        self._zones = zones

    def joules(self, action: Callable[[], object]) -> float | None:
        try:
            before = [zone.read() for zone in self._zones]
            action()
            after = [zone.read() for zone in self._zones]
        except (OSError, ValueError):
            return None
        used = (
            end - start if end >= start else end + zone.limit - start
            for zone, start, end in zip(self._zones, before, after, strict=True)
        )
        return sum(used) / 1e6


class _PowerMeter(EnergyMeter):
    """Reads watts at intervals in a thread, and multiplies their mean with the duration of the action."""

    def __init__(self, source: str, watts: Callable[[], float | None], period: float) -> None:
        super().__init__(source)
        self._watts = watts
        self._period = period

    def joules(self, action: Callable[[], object]) -> float | None:
        readings: list[float] = []
        done = Event()

        def sample() -> None:
            while not done.wait(self._period):
                with suppress(OSError, ValueError):
                    if (watts := self._watts()) is not None:
                        readings.append(watts)

        sampler = Thread(target=sample, daemon=True)
        start = perf_counter()
        sampler.start()
        try:
            action()
            seconds = perf_counter() - start
        finally:
            done.set()
            sampler.join()
        return fmean(readings) * seconds if readings else None


def _rapl(root: Path) -> EnergyMeter | None:
    zones, names = [], []
    for folder in sorted(root.glob(_RAPL_ZONES)):
        if ":" in folder.name.removeprefix("intel-rapl:"):
            continue
        with suppress(OSError, ValueError):
            name = (folder / "name").read_text().strip()
            zone = _Zone(folder / "energy_uj", int((folder / "max_energy_range_uj").read_text()))
            if name.startswith(_PACKAGE):
                zone.read()  # since Linux 5.10 only root may do this by default
                zones.append(zone)
                names.append(name)
    return _RaplMeter(f"RAPL {' + '.join(names)}", zones) if zones else None


def _jetson(root: Path) -> EnergyMeter | None:
    channels: dict[str, tuple[Path, Path]] = {}
    for label in sorted(root.glob("sys/class/hwmon/hwmon*/in[0-9]*_label")):
        with suppress(OSError, ValueError):
            if (label.parent / "name").read_text().strip() == "ina3221":
                number = label.name.removeprefix("in").removesuffix("_label")
                files = label.parent / f"in{number}_input", label.parent / f"curr{number}_input"
                _watts(*files)  # a channel that cannot be read is left out
                channels[label.read_text().strip()] = files
    for rails in _JETSON_RAILS:
        if all(rail in channels for rail in rails):
            return _sum_of_rails(rails, [channels[rail] for rail in rails])
    return None


def _sum_of_rails(rails: Sequence[str], files: Sequence[tuple[Path, Path]]) -> EnergyMeter:
    return _PowerMeter(f"INA3221 {' + '.join(rails)}", lambda: sum(_watts(*pair) for pair in files), _SENSOR_PERIOD)


def _watts(millivolts: Path, milliamperes: Path) -> float:
    """Return the power of a channel, docs.kernel.org/hwmon/ina3221.html."""
    return int(millivolts.read_text()) * int(milliamperes.read_text()) / 1e6


def _raspberry_pi(root: Path) -> EnergyMeter | None:
    """Return a meter for the power controller of a Raspberry Pi 5, for which Linux has no files."""
    program = None
    with suppress(OSError):
        if (root / "proc/device-tree/model").read_text(errors="replace").startswith("Raspberry Pi"):
            program = shutil.which("vcgencmd")
    if program is None or _pmic_watts(program) is None:  # older boards have no such power controller
        return None
    return _PowerMeter("Raspberry Pi PMIC, all rails", lambda: _pmic_watts(program), _PROGRAM_PERIOD)


def _pmic_watts(program: str) -> float | None:
    try:
        done = subprocess.run(  # noqa: S603 (no shell, and a fixed argument)
            [program, "pmic_read_adc"], capture_output=True, text=True, timeout=_PMIC_TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    values = {(rail, unit): float(value) for rail, unit, value in _PMIC_LINE.findall(done.stdout)}
    rails = [
        volts * values[rail, "A"] for (rail, unit), volts in values.items() if unit == "V" and (rail, "A") in values
    ]
    return sum(rails) if rails else None
