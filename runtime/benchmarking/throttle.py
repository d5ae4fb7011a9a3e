"""Detect whether other programs, the hypervisor, heat or power limits disturbed a measurement."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

_ROOT = Path("/")
# Fractions of the machine's time, taken by other programs or by the hypervisor, above which medians change.
_BUSY = 0.15
_STOLEN = 0.05
# A core below this fraction of its highest clock, right after work, was throttled.
_SLOW = 0.9

# Raspberry Pi firmware, https://www.raspberrypi.com/documentation/computers/os.html, "get_throttled".
_PI_FLAGS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
_PI_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"
_PI_HAS_OCCURRED = 16
# Counters of throttling: x86 cores, over-current alarms of Jetson boards.
_COUNTERS = (
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count",
    "sys/class/hwmon/hwmon*/oc*_event_cnt",
)


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment; None or empty where the system does not report them."""

    moment: float
    own: float
    busy: float | None
    stolen: float | None
    counters: dict[str, int]
    pi_flags: int | None


class Watch:
    """Compare the state of the machine at creation with its state when ``marks`` is called."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._before = _take_snapshot(root)

    def marks(self) -> tuple[str, ...]:
        """Descriptions of disturbances since creation; empty if there were none, or the system reports none."""
        return tuple(_compare(self._before, _take_snapshot(self._root), os.cpu_count() or 1)) + tuple(_heat(self._root))


def clock(root: Path = _ROOT) -> float | None:
    """Current clock of the fastest core as a fraction of its highest, or None. Call it right after work."""
    fractions = []
    for folder in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            fractions.append(_number(folder / "scaling_cur_freq") / _number(folder / "cpuinfo_max_freq"))
    return max(fractions, default=None)


def slow_clock(fractions: list[float]) -> str | None:
    """Describe throttling if the median of the clocks, measured right after work, is low; else None."""
    if not fractions:
        return None
    fraction = sorted(fractions)[len(fractions) // 2]
    return f"the CPU ran at {fraction:.0%} of its highest clock" if fraction < _SLOW else None


def temperature(root: Path = _ROOT) -> float | None:
    """The hottest thermal zone in degrees Celsius, or None."""
    return max((degrees for degrees, _ in _zones(root)), default=None)


def _take_snapshot(root: Path) -> Snapshot:
    busy, stolen = _cpu_seconds(root / "proc/stat")
    counters = {}
    for pattern in _COUNTERS:
        for path in root.glob(pattern):
            with suppress(OSError, ValueError):
                counters[str(path)] = _number(path)
    flags = None
    with suppress(OSError, ValueError):
        flags = int((root / _PI_FILE).read_text().strip(), 16)
    return Snapshot(perf_counter(), _own_seconds(), busy, stolen, counters, flags)


def _compare(before: Snapshot, after: Snapshot, cores: int) -> Iterator[str]:
    passed = max(after.moment - before.moment, 1e-3)
    if before.busy is not None and after.busy is not None:
        others = (after.busy - before.busy - (after.own - before.own)) / passed
        if others > _BUSY * cores:
            yield f"other programs kept {others:.1f} of {cores} cores busy"
    if before.stolen is not None and after.stolen is not None:
        fraction = (after.stolen - before.stolen) / passed / cores
        if fraction > _STOLEN:
            yield f"the hypervisor took {fraction:.0%} of the CPU"
    grown = [name for name, count in after.counters.items() if count > before.counters.get(name, count)]
    if grown:
        yield f"the hardware slowed itself down ({', '.join(sorted({Path(name).name for name in grown}))})"
    if after.pi_flags:
        now = [flag for bit, flag in _PI_FLAGS.items() if after.pi_flags >> bit & 1]
        # The "has occurred" flags count since the board was switched on: report only new ones.
        fresh = (after.pi_flags & ~(before.pi_flags or 0)) >> _PI_HAS_OCCURRED
        seen = [flag for bit, flag in _PI_FLAGS.items() if fresh >> bit & 1 and flag not in now]
        if now or seen:
            yield f"Raspberry Pi firmware: {', '.join([*now, *seen])}"


def _heat(root: Path) -> Iterator[str]:
    for degrees, limit in _zones(root):
        if limit is not None and degrees >= limit:
            yield f"{degrees:.0f} °C, where the system slows down from {limit:.0f} °C"


def _zones(root: Path) -> Iterator[tuple[float, float | None]]:
    """Temperature of each thermal zone in degrees Celsius, and its passive trip point, where the system slows down."""
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        limits = []
        for kind in zone.glob("trip_point_*_type"):
            with suppress(OSError, ValueError):
                if kind.read_text().strip() == "passive":
                    limits.append(_number(kind.with_name(kind.name.replace("_type", "_temp"))) / 1e3)
        with suppress(OSError, ValueError):
            yield _number(zone / "temp") / 1e3, min(limits, default=None)


def _cpu_seconds(stat: Path) -> tuple[float | None, float | None]:
    """Seconds that all cores worked, and that the hypervisor took; see proc(5), ``/proc/stat``."""
    with suppress(OSError, ValueError, IndexError):
        with open(stat, encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
        tick = os.sysconf("SC_CLK_TCK")
        return (user + nice + system + irq + softirq) / tick, steal / tick
    return None, None


def _own_seconds() -> float:
    """CPU seconds of this process and of its finished children."""
    if sys.platform == "win32":
        return 0.0
    import resource

    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _number(path: Path) -> int:
    return int(path.read_text())
