"""Describe this machine: its CPU with its instructions, its memory, its board and the installed packages."""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from mri_edge.records import dataclass

from .cpu import cgroup_folders

# CPU instructions that decide which code inference libraries run: name in the kernel -> name of the CPU maker.
# Linux arch/x86/include/asm/cpufeatures.h, arch/arm64/include/uapi/asm/hwcap.h.
_INSTRUCTIONS = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512",
    "avx_vnni": "vnni",
    "avx512_vnni": "vnni",
    "avx512_bf16": "bf16",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
    "neon": "neon",
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
# These sum 8-bit products in 32 bits in one step, which makes int8 fast and exact.
_DOT_PRODUCTS = frozenset({"vnni", "dotprod", "amx-int8", "i8mm"})

_CPUINFO = Path("/proc/cpuinfo")
_FIRST_CORE = 16 << 10  # bytes; cpuinfo of one core has 3 kB, of 256 cores nearly 1 MB
_BOARD_FILES = (Path("/proc/device-tree/model"), Path("/sys/firmware/devicetree/base/model"))
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Cpu:
    """Architecture, model name, and which of the instructions above the CPU has."""

    architecture: str
    model: str
    instructions: frozenset[str]

    @property
    def multiplies_int8_fast(self) -> bool:
        """Whether the CPU has dot products of 8-bit integers."""
        return bool(self.instructions & _DOT_PRODUCTS)

    def __str__(self) -> str:
        return f"{self.model} ({self.architecture}): {', '.join(sorted(self.instructions)) or 'instructions unknown'}"


@dataclass(frozen=True)
class Memory:
    """Memory in bytes: of the machine, available now, and the container's limit if there is one."""

    total: int
    available: int
    limit: int | None

    @property
    def usable(self) -> int:
        """Memory that this process may use: the smaller of the machine's and the limit."""
        return self.total if self.limit is None else min(self.total, self.limit)


def cpu(cpuinfo: Path = _CPUINFO) -> Cpu:
    """Read the CPU's name and instructions. There are none where the system does not report them."""
    architecture = os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "unknown")
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            return read_cpuinfo(file.read(_FIRST_CORE), architecture)
    except OSError:
        if sys.platform == "darwin" and architecture == "arm64":  # all Apple M CPUs have these
            return Cpu(architecture, "Apple silicon", frozenset({"neon", "fp16", "dotprod"}))
        return Cpu(architecture, os.environ.get("PROCESSOR_IDENTIFIER", "unknown"), frozenset())


def read_cpuinfo(text: str, architecture: str) -> Cpu:
    """Parse the first core in the text of ``/proc/cpuinfo``. The keys differ between x86 and ARM."""
    facts: dict[str, str] = {}
    for line in text.split("\n\n", 1)[0].splitlines():
        name, colon, value = line.partition(":")
        if colon:
            facts[name.strip().lower()] = value.strip()
    flags = (facts.get("flags") or facts.get("features") or "").split()
    model = facts.get("model name") or " ".join(
        f"{name} {facts[name]}" for name in ("cpu implementer", "cpu part") if name in facts
    )
    found = frozenset(_INSTRUCTIONS[flag] for flag in flags if flag in _INSTRUCTIONS)
    return Cpu(architecture, model or "unknown", found)


def memory(meminfo: Path = _MEMINFO) -> Memory | None:
    """Return the memory of the machine and of the container; None where the system does not report it."""
    try:
        text = meminfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    values = {name: int(size) << 10 for name, size in re.findall(r"^(MemTotal|MemAvailable): +(\d+) kB", text, re.M)}
    if "MemTotal" not in values:
        return None
    limits = [limit for folder in cgroup_folders() if (limit := memory_limit(folder)) is not None]
    limit = min(limits, default=None)
    total = values["MemTotal"]
    # Version 1 reports a huge number if there is no limit.
    return Memory(total, values.get("MemAvailable", total), limit if limit is not None and limit < total else None)


def memory_limit(cgroup: Path) -> int | None:
    """Return the limit in bytes from cgroup version 2 (``memory.max``) or 1; None without one."""
    for file in ("memory.max", "memory.limit_in_bytes", "memory/memory.limit_in_bytes"):
        try:
            return int((cgroup / file).read_text())
        except (OSError, ValueError):  # "max" is not a number
            continue
    return None


def board() -> str | None:
    """Return the name of a single-board computer (Raspberry Pi, Jetson, …) from its device tree, or None."""
    for file in _BOARD_FILES:
        try:
            return file.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
        except OSError:
            continue
    return None


def is_32_bit_arm() -> bool:
    """Whether this Python is a 32-bit ARM program, for which the engines have no wheels."""
    machine = os.uname().machine if hasattr(os, "uname") else ""
    return struct.calcsize("P") == 4 and machine.startswith(("arm", "aarch64"))


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, from the names of ``.dist-info`` folders.

    ``importlib.metadata`` takes 30 times as long.
    """
    wanted = {name.replace("-", "_"): name for name in packages}
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            entries = os.listdir(folder or ".")  # noqa: PTH208 (it returns only names, 10 times as fast)
        except OSError:
            continue
        for entry in entries:
            if entry.endswith(".dist-info"):
                name, _, version = entry.removesuffix(".dist-info").partition("-")
                package = wanted.get(name.lower().replace(".", "_"))
                if package:
                    found.setdefault(package, version)
    return {name: found[name] for name in sorted(found)}
