"""Where records lie: committed ones in ``benchmarks/results``, by kind of machine, fresh ones in ``build/bench``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mri_edge import Bundle
from mri_edge.benchmarking.benchmark import machine_facts
from mri_edge.scans.readers import picture
from mri_edge.storage.atomic import make_folder, sha256_of, write_whole

CHECKOUT = Path(__file__).parents[1]
COMMITTED = CHECKOUT / "benchmarks" / "results"
FRESH = CHECKOUT / "build" / "bench"
MAIN = "x86_64-avx2"  # the kind of machine whose record README shows in full
# What a kind is named after, the best first: on these instructions the time of int8, and so most ratios, depend.
_DECISIVE = ("amx-int8", "vnni", "i8mm", "dotprod", "avx2", "neon")


def data_folder() -> Path | None:
    """The real scans: ``MRI_EDGE_DATA``, else beside the checkout; None where there are none."""
    folder = Path(os.environ.get("MRI_EDGE_DATA") or CHECKOUT.parent / "shared" / "data")
    return folder if (folder / "navoneel" / "yes").is_dir() else None


def kind_of_machine(facts: dict[str, Any]) -> str:
    """The folder of a machine's records: its architecture and its best instructions for int8."""
    name, _, instructions = facts["cpu"].rpartition("): ")
    architecture, has = name.rpartition("(")[2], instructions.split(", ")
    return "-".join([architecture, *[one for one in _DECISIVE if one in has][:1]])


def same_machine(fresh: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether both were made on the same CPU with as many cores and threads, as far as they say.

    Under a hypervisor the name of a CPU is little more than its maker's; an older record may lack a number.
    """

    def where(one: dict[str, Any]) -> tuple[Any, ...]:
        return one["machine"]["cpu"], one["machine"].get("cores"), one.get("threads")

    return all(ours == its or None in (ours, its) for ours, its in zip(where(fresh), where(record), strict=True))


def kinds() -> list[str]:
    """The kinds of machine with committed records, README's first."""
    return sorted((one.name for one in COMMITTED.iterdir() if one.is_dir()), key=lambda one: (one != MAIN, one))


def save(name: str, record: dict[str, Any], *, committed: bool) -> Path:
    """Write a record whole, and say where."""
    folder = COMMITTED / kind_of_machine(record["machine"]) if committed else FRESH
    make_folder(folder)
    path = folder / f"{name}.json"
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {path.relative_to(CHECKOUT)}")
    return path


def load(name: str, kind: str | None = None) -> dict[str, Any] | None:
    """The committed record of a kind of machine; by default of this one, or README's where this one has none."""
    if kind is None:
        return load(name, kind_of_machine(machine_facts())) or load(name, MAIN)
    return _read(COMMITTED / kind / f"{name}.json")


def load_fresh(name: str) -> dict[str, Any] | None:
    """What was measured last without ``--record``, or None."""
    return _read(FRESH / f"{name}.json")


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def reference_images(bundle: Bundle, data: Path | None) -> list[dict[str, Any]]:
    """The reference's test images with their labels and Keras' probabilities, as ``parity.json`` has them; or none.

    A bundle that ships knows images by their hashes alone: ``file`` is where the image lies below ``data``.
    """
    entry = next((document for document in bundle.manifest.documents if document.file == "parity.json"), None)
    if data is None or entry is None:
        return []
    known = {image["sha256"]["file"]: image for image in json.loads(bundle.read(entry))["images"]}
    pictures = (path for path in sorted(data.rglob("*")) if path.name.lower().endswith(picture.SUFFIXES))
    found = {sha256_of(path): path.relative_to(data).as_posix() for path in pictures}
    return [{**image, "file": found[digest]} for digest, image in known.items() if digest in found]
