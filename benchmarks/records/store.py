"""Read and write measurement records: committed ones in ``benchmarks/results/KIND``, fresh ones in ``build/bench``."""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.processes import CHECKOUT
from mri_edge.benchmarking.benchmark import machine_facts
from mri_edge.device.machine import installed
from mri_edge.inference.tuned_profile import library_versions

COMMITTED = CHECKOUT / "benchmarks" / "results"
FRESH = CHECKOUT / "build" / "bench"
MAIN = "x86_64-vnni"  # the documents show the record of this kind of machine in full
# A kind is named after the first of these that it has, because the speed of int8, and so most ratios, depend on it.
_INT8_INSTRUCTIONS = ("amx-int8", "vnni", "i8mm", "dotprod", "avx2", "neon")


def parse_arguments(description: str | None, busy: str, **options: Any) -> Any:
    """Parse ``--record``, ``--busy`` (described by ``busy``) and further options, given as NAME=settings."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the committed record")
    parser.add_argument("--busy", action="store_true", help=f"for a machine with other work: {busy}")
    for name, settings in options.items():
        parser.add_argument(f"--{name}", **settings)
    return parser.parse_args()


def facts(*packages: str) -> dict[str, Any]:
    """Return what begins every record: time, machine, versions of the engines' libraries and of ``packages``."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"created": created, "machine": machine_facts(), "libraries": library_versions() | installed(packages)}


def kind_of_machine(machine: dict[str, Any]) -> str:
    """Return the folder name for a machine's records: its architecture and its best instructions for int8."""
    name, _, instructions = machine["cpu"].rpartition("): ")
    architecture, has = name.rpartition("(")[2], instructions.split(", ")
    return "-".join([architecture, *[instruction for instruction in _INT8_INSTRUCTIONS if instruction in has][:1]])


def same_machine(fresh: dict[str, Any], record: dict[str, Any]) -> bool:
    """Return whether both were made on the same CPU with as many cores and threads; a missing number matches any.

    Under a hypervisor the name of a CPU often says only who made it, so cores and threads are compared as well.
    """
    here, there = (
        (made["machine"]["cpu"], made["machine"].get("cores"), made.get("threads")) for made in (fresh, record)
    )
    return all(ours == theirs or None in (ours, theirs) for ours, theirs in zip(here, there, strict=True))


def kinds() -> list[str]:
    """Return the kinds of machine with committed records, ``MAIN`` first."""
    found = [folder.name for folder in COMMITTED.iterdir() if folder.is_dir()]
    return sorted(found, key=lambda kind: (kind != MAIN, kind))


def save(name: str, record: dict[str, Any], *, committed: bool) -> Path:
    """Write a record, and return and print its path."""
    folder = COMMITTED / kind_of_machine(record["machine"]) if committed else FRESH
    path = folder / f"{name}.json"
    write(path, record)
    print(f"written: {path.relative_to(CHECKOUT)}")
    return path


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record to ``path``, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(name: str, kind: str | None = None) -> dict[str, Any] | None:
    """Return the committed record of ``kind``, by default this machine's or else ``MAIN``; None without one."""
    if kind is None:
        return load(name, kind_of_machine(machine_facts())) or load(name, MAIN)
    return _read(COMMITTED / kind / f"{name}.json")


def load_fresh(name: str) -> dict[str, Any] | None:
    """Return what was last measured without ``--record``, or None."""
    return _read(FRESH / f"{name}.json")


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
