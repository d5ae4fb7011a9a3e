"""Where records lie: committed ones in ``benchmarks/results``, fresh ones in ``build/bench``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mri_edge.files import make_folder, write_whole

CHECKOUT = Path(__file__).parents[1]
COMMITTED = CHECKOUT / "benchmarks" / "results"
FRESH = CHECKOUT / "build" / "bench"


def data_folder() -> Path | None:
    """The real scans: ``MRI_EDGE_DATA``, else beside the checkout; None where there are none."""
    folder = Path(os.environ.get("MRI_EDGE_DATA") or CHECKOUT.parent / "shared" / "data")
    return folder if (folder / "navoneel" / "yes").is_dir() else None


def save(name: str, record: dict[str, Any], *, committed: bool) -> Path:
    """Write a record whole, and say where."""
    folder = COMMITTED if committed else FRESH
    make_folder(folder)
    path = folder / f"{name}.json"
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {path.relative_to(CHECKOUT)}")
    return path


def load(name: str, *, committed: bool = True) -> dict[str, Any] | None:
    """A record, or None."""
    path = (COMMITTED if committed else FRESH) / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
