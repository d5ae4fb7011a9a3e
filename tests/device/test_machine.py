"""Facts about the machine are read from files as real machines write them."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from mri_edge.device import machine
from mri_edge.device.cpu import available_cpus, cgroup_folders

INTEL = """processor	: 0
vendor_id	: GenuineIntel
model name	: Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz
flags		: fpu sse2 fma f16c avx2 avx512f avx512_vnni
bugs		: spectre_v1

processor	: 1
model name	: another
flags		: fpu
"""
OLD_INTEL = "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5-4570\nflags\t\t: fpu sse2 fma avx2\n"
ALDER_LAKE = "processor\t: 0\nmodel name\t: 12th Gen Intel(R) Core(TM) i5-1240P\nflags\t\t: avx2 fma avx_vnni\n"
RASPBERRY_PI_4 = """processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd evtstrm crc32 cpuid
CPU implementer	: 0x41
CPU part	: 0xd08
"""
RASPBERRY_PI_5 = RASPBERRY_PI_4.replace("cpuid", "cpuid asimdrdm asimddp fphp asimdhp").replace("0xd08", "0xd0b")
GRAVITON_3 = RASPBERRY_PI_5.replace("asimddp", "asimddp i8mm bf16 sve")


@pytest.mark.parametrize(
    ("text", "architecture", "model", "instructions", "fast"),
    [
        (INTEL, "x86_64", "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", {"vnni", "avx512", "avx2"}, True),
        (ALDER_LAKE, "x86_64", "12th Gen Intel(R) Core(TM) i5-1240P", {"vnni", "avx2"}, True),
        (OLD_INTEL, "x86_64", "Intel(R) Core(TM) i5-4570", {"avx2", "fma"}, False),
        (RASPBERRY_PI_4, "aarch64", "cpu implementer 0x41 cpu part 0xd08", {"neon"}, False),
        (RASPBERRY_PI_5, "aarch64", "cpu implementer 0x41 cpu part 0xd0b", {"neon", "dotprod", "fp16"}, True),
        (GRAVITON_3, "aarch64", "cpu implementer 0x41 cpu part 0xd0b", {"dotprod", "i8mm", "sve"}, True),
        ("", "riscv64", "unknown", set(), False),
    ],
)
def test_cpu_of_real_machines(text, architecture, model, instructions, fast):
    found = machine.read_cpuinfo(text, architecture)
    assert (found.architecture, found.model) == (architecture, model)
    assert instructions <= found.instructions
    assert found.multiplies_int8_fast is fast


def test_the_first_core_is_enough_of_a_large_server(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(INTEL * 200)
    assert "vnni" in machine.cpu(cpuinfo).instructions


def test_a_system_without_cpuinfo_claims_no_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert machine.cpu(tmp_path / "absent").instructions == frozenset()
    assert not machine.cpu(tmp_path / "absent").multiplies_int8_fast


def test_memory_knows_the_containers_limit(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:        8000000 kB\nMemFree:          100000 kB\nMemAvailable:    5000000 kB\n")
    group = tmp_path / "cgroup"
    group.mkdir()
    monkeypatch.setattr(machine, "cgroup_folders", lambda: [tmp_path, group])
    free = machine.memory(meminfo)
    assert (free.total, free.available, free.limit) == (8_000_000 << 10, 5_000_000 << 10, None)
    (group / "memory.max").write_text("536870912\n")
    assert machine.memory(meminfo).usable == 512 << 20
    (group / "memory.max").write_text("max\n")
    assert machine.memory(meminfo).limit is None


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("memory.max", "1048576\n", 1 << 20),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "2097152\n", 2 << 20),
    ],
)
def test_memory_limit_of_both_cgroup_versions(tmp_path, file, text, expected):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert machine.memory_limit(tmp_path) == expected


def test_version_1_writes_a_huge_number_for_no_limit(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    monkeypatch.setattr(machine, "cgroup_folders", lambda: [tmp_path])
    assert machine.memory(tmp_path / "meminfo").limit is None


def test_a_service_is_bound_by_every_group_above_it(tmp_path):
    membership = tmp_path / "self"
    membership.write_text("0::/system.slice/mri.service\n")
    root = Path("/sys/fs/cgroup")
    assert cgroup_folders(root, membership) == [
        root,
        root / "system.slice",
        root / "system.slice" / "mri.service",
    ]
    membership.write_text("0::/../escaped\n")
    assert cgroup_folders(root, membership) == [root]


def test_quota_of_a_group_below_the_root_counts(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr("mri_edge.device.cpu.cgroup_folders", lambda: [Path("/nowhere"), tmp_path])
    assert available_cpus() == 1


def test_board_is_read_from_the_device_tree(tmp_path, monkeypatch):
    tree = tmp_path / "model"
    tree.write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    monkeypatch.setattr(machine, "_BOARD_FILES", (tmp_path / "absent", tree))
    assert machine.board() == "Raspberry Pi 5 Model B Rev 1.0"
    monkeypatch.setattr(machine, "_BOARD_FILES", (tmp_path / "absent",))
    assert machine.board() is None


@pytest.mark.parametrize(
    ("name", "pointer", "expected"),
    [("armv7l", 4, True), ("aarch64", 4, True), ("aarch64", 8, False), ("i686", 4, False)],
)
def test_32_bit_arm_also_under_a_64_bit_kernel(monkeypatch, name, pointer, expected):
    monkeypatch.setattr(machine.os, "uname", type("Names", (), {"machine": name}), raising=False)
    monkeypatch.setattr(machine.struct, "calcsize", lambda code: pointer)
    assert machine.is_32_bit_arm() is expected


def test_versions_are_those_of_importlib_metadata():
    names = ["numpy", "pillow", "onnxruntime", "ai-edge-litert", "no-such-package"]
    expected = {}
    for name in names:
        try:
            expected[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    assert machine.installed(names) == expected
    assert "numpy" in expected
