"""Energy is read from the files of RAPL and of a Jetson, and from the program of a Raspberry Pi 5."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from threading import Event
from time import perf_counter

import pytest

from mri_edge.benchmarking import energy
from mri_edge.benchmarking.energy import find_meter

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the files are Linux's")

RANGE = 262_143_328_850  # microjoules; of an AMD EPYC and of most Intel CPUs
PMIC = """\
 3V7_WL_SW_A current(0)=0.10000000A
  VDD_CORE_A current(7)=1.50000000A
 3V7_WL_SW_V volt(8)=3.70000000V
  VDD_CORE_V volt(15)=0.90000000V
     EXT5V_V volt(24)=5.05716000V
"""


def put(root: Path, file: str, content: object) -> Path:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n", encoding="utf-8")
    return path


def link(root: Path, link: str, target: str) -> None:
    """Make the link from ``/sys/class`` to the device, as Linux does."""
    path = root / link
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.symlink_to(root / target)


def zone(root: Path, number: str, name: str, microjoules: int) -> Path:
    folder = f"sys/devices/virtual/powercap/intel-rapl/intel-rapl:{number}"
    link(root, f"sys/class/powercap/intel-rapl:{number}", folder)
    put(root, f"{folder}/name", name)
    put(root, f"{folder}/max_energy_range_uj", RANGE)
    return put(root, f"{folder}/energy_uj", microjoules)


def rail(root: Path, chip: int, channel: int, label: str, millivolts: int, milliamperes: int) -> None:
    folder = f"sys/devices/platform/i2c/1-0040/hwmon/hwmon{chip}"
    link(root, f"sys/class/hwmon/hwmon{chip}", folder)
    put(root, f"{folder}/name", "ina3221")
    put(root, f"{folder}/in{channel}_label", label)
    put(root, f"{folder}/in{channel}_input", millivolts)
    put(root, f"{folder}/curr{channel}_input", milliamperes)


def raspberry_pi(
    root: Path, monkeypatch: pytest.MonkeyPatch, output: str, model: str = "Raspberry Pi 5 Model B"
) -> None:
    put(root, "proc/device-tree/model", model)
    program = put(root, "bin/vcgencmd", f"#!/bin/sh\n[ \"$1\" = pmic_read_adc ] && cat <<'END'\n{output}END")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")


def test_machine_without_a_counter_has_no_meter(tmp_path):
    assert find_meter(tmp_path) is None


def test_packages_are_summed_and_their_parts_are_not_counted_twice(tmp_path):
    first, second = zone(tmp_path, "0", "package-0", 1_000_000), zone(tmp_path, "1", "package-1", 5_000_000)
    parts = [zone(tmp_path, "0:0", "core", 0), zone(tmp_path, "2", "psys", 0)]
    put(tmp_path, "sys/class/powercap/intel-rapl-mmio:0/name", "package-0")
    meter = find_meter(tmp_path)
    assert meter.source == "RAPL package-0 + package-1"

    def work():
        first.write_text("3000000\n", encoding="ascii")
        second.write_text("5500000\n", encoding="ascii")
        for part in parts:
            part.write_text("900000000\n", encoding="ascii")

    assert meter.joules(work) == 2.5


def test_counter_that_starts_again_at_zero_is_corrected(tmp_path):
    counter = zone(tmp_path, "0", "package-0", RANGE - 1_000_000)
    assert find_meter(tmp_path).joules(lambda: counter.write_text("2000000", encoding="ascii")) == 3.0


def test_counter_only_for_root_is_not_used(tmp_path, monkeypatch):
    counter = zone(tmp_path, "0", "package-0", 1)
    read = Path.read_text

    def refuse(path, *arguments, **named):  # a test that runs as root can read any file
        if path.name == counter.name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert find_meter(tmp_path) is None


def test_counter_that_disappears_gives_no_value(tmp_path):
    counter = zone(tmp_path, "0", "package-0", 1)
    assert find_meter(tmp_path).joules(counter.unlink) is None


@pytest.mark.parametrize("content", ["", "no number"])
def test_invalid_counter_is_ignored(tmp_path, content):
    zone(tmp_path, "0", "package-0", 1).write_text(content, encoding="ascii")
    assert find_meter(tmp_path) is None


def test_energy_of_a_query_is_that_of_the_run_divided_by_the_queries(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_SECONDS", 0.05)
    counter = zone(tmp_path, "0", "package-0", 0)

    def query(index):
        counter.write_text(str(int(counter.read_text()) + 250_000), encoding="ascii")

    assert find_meter(tmp_path).joules_per_query(query, 4) == 0.25


def test_supply_of_a_jetson_module_is_preferred_to_its_parts(tmp_path):
    rail(tmp_path, 1, 1, "VDD_IN", 5000, 1200)
    rail(tmp_path, 1, 2, "VDD_CPU_GPU_CV", 5000, 400)
    put(tmp_path, "sys/class/hwmon/hwmon0/name", "nvme")
    meter = find_meter(tmp_path)
    assert meter.source == "INA3221 VDD_IN"
    assert meter._watts() == 6.0


def test_power_is_multiplied_with_the_duration():
    readings = [Event(), Event()]
    watts = iter((4.0, 8.0))

    def read():
        value = next(watts, 6.0)
        next((event for event in readings if not event.is_set()), readings[0]).set()
        return value

    def work():
        start = perf_counter()
        assert all(event.wait(60) for event in readings)
        inner.append(perf_counter() - start)

    inner: list[float] = []
    before = perf_counter()
    joules = energy._PowerMeter("a sensor", read, 0.001).joules(work)
    # The mean is 6 W, but the last value may not be in the list yet when the work ends: 4 to 6 W.
    assert 4 * inner[0] <= joules <= 6 * (perf_counter() - before)


def test_run_that_ends_before_the_first_reading_has_no_energy():
    assert energy._PowerMeter("a sensor", lambda: 1.0, 60).joules(lambda: None) is None


def test_reading_that_fails_is_left_out():
    def read():
        failed.set()
        raise OSError(5, "Input/output error")

    failed = Event()
    assert energy._PowerMeter("a sensor", read, 0.001).joules(lambda: failed.wait(60)) is None


def test_processors_of_a_jetson_without_a_common_supply_are_summed(tmp_path):
    rail(tmp_path, 3, 1, "VDD_GPU_SOC", 20_000, 100)
    rail(tmp_path, 3, 2, "VDD_CPU_CV", 20_000, 50)
    rail(tmp_path, 3, 3, "VIN_SYS_5V0", 5000, 600)
    meter = find_meter(tmp_path)
    assert meter.source == "INA3221 VDD_GPU_SOC + VDD_CPU_CV"
    assert meter._watts() == 3.0


def test_rail_without_a_reading_is_not_used(tmp_path):
    rail(tmp_path, 1, 1, "VDD_IN", 5000, 1200)
    (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").unlink()
    assert find_meter(tmp_path) is None


def test_rails_of_a_raspberry_pi_5_are_summed(tmp_path, monkeypatch):
    raspberry_pi(tmp_path, monkeypatch, PMIC)
    meter = find_meter(tmp_path)
    assert meter.source == "Raspberry Pi PMIC, all rails"
    assert meter._watts() == pytest.approx(0.37 + 1.35)


@pytest.mark.parametrize(
    ("output", "model"),
    [('error=1 error_msg="Command not registered"\n', "Raspberry Pi 4 Model B"), (PMIC, "Some other board")],
)
def test_other_boards_have_no_power_controller(tmp_path, monkeypatch, output, model):
    raspberry_pi(tmp_path, monkeypatch, output, model)
    assert find_meter(tmp_path) is None
