"""Throttling, clock and temperature are read from the files that Linux, a Raspberry Pi and a Jetson write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mri_edge.benchmarking import throttle
from mri_edge.benchmarking.throttle import Watch, clock, slow_clock, temperature

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the files are Linux's")


def put(root: Path, file: str, content: object) -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


def stat(root: Path, busy: float, stolen: float = 0.0) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    put(root, "proc/stat", f"cpu  {int(busy * tick)} 0 0 1000 0 0 0 {int(stolen * tick)} 0 0")


@pytest.fixture
def seconds(monkeypatch):
    """A clock that reads 100 s and then 110 s; this program used 4 s of CPU in between."""
    moments, own = iter((100.0, 110.0)), iter((50.0, 54.0))
    monkeypatch.setattr(throttle, "perf_counter", lambda: next(moments))
    monkeypatch.setattr(throttle, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


def test_a_silent_system_has_no_marks(tmp_path):
    assert Watch(tmp_path).marks() == ()
    assert clock(tmp_path) is None
    assert temperature(tmp_path) is None


def test_our_own_work_is_no_disturbance(tmp_path, seconds):
    stat(tmp_path, 1000)
    watch = Watch(tmp_path)
    stat(tmp_path, 1004.5)
    assert watch.marks() == ()


def test_cpu_time_of_other_programs_and_the_hypervisor_is_reported(tmp_path, seconds):
    stat(tmp_path, 1000, 5)
    watch = Watch(tmp_path)
    stat(tmp_path, 1024, 9)
    assert watch.marks() == ("other programs kept 2.0 of 4 cores busy", "the hypervisor took 10% of the CPU")


def test_raspberry_pi_flags(tmp_path):
    flags = "sys/devices/platform/soc/soc:firmware/get_throttled"
    put(tmp_path, flags, "20000")  # capped at some time before
    watch = Watch(tmp_path)
    assert watch.marks() == ()
    put(tmp_path, flags, "c0008")  # hot now; throttled and hot meanwhile
    assert watch.marks() == ("Raspberry Pi firmware: soft temperature limit, throttled",)


@pytest.mark.parametrize(
    "file",
    [
        "sys/class/hwmon/hwmon2/oc3_event_cnt",
        "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count",
    ],
)
def test_hardware_counters(tmp_path, file):
    put(tmp_path, file, 7)
    watch = Watch(tmp_path)
    assert watch.marks() == ()
    put(tmp_path, file, 8)
    assert watch.marks() == (f"the hardware slowed itself down ({Path(file).name})",)


def test_heat_is_reported_from_the_passive_trip_point_on(tmp_path):
    zone = "sys/class/thermal/thermal_zone0/"
    for name, value in {"temp": 79000, "trip_point_0_type": "passive", "trip_point_0_temp": 80000}.items():
        put(tmp_path, zone + name, value)
    put(tmp_path, zone + "trip_point_1_type", "critical")
    assert Watch(tmp_path).marks() == ()
    assert temperature(tmp_path) == 79
    put(tmp_path, zone + "temp", 83500)
    [mark] = Watch(tmp_path).marks()
    assert "84 °C" in mark
    assert "80 °C" in mark


def test_clock_is_that_of_the_fastest_core(tmp_path):
    for core, now in enumerate((600000, 1200000)):
        put(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", now)
        put(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", 1500000)
    assert clock(tmp_path) == 0.8
    assert slow_clock([0.8, 0.8, 1.0]) == "the CPU ran at 80% of its highest clock"
    assert slow_clock([1.0, 0.95, 0.6]) is None
    assert slow_clock([]) is None


def test_invalid_content_in_the_files_is_ignored(tmp_path):
    for file in (
        "proc/stat",
        "sys/devices/platform/soc/soc:firmware/get_throttled",
        "sys/class/hwmon/hwmon0/oc1_event_cnt",
    ):
        put(tmp_path, file, "no number")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "hot")
    assert Watch(tmp_path).marks() == ()
