"""Cold start: whole processes from the command line to the answer, in turn.

python benchmarks/cold_start.py             # a minute; wants a quiet machine; writes build/bench/cold_start.json
python benchmarks/cold_start.py --record    # writes the committed record
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import records
from paired import alternate, program, script, wall_seconds
from subjects import bundles
from undisturbed import cpu_seconds

from mri_edge.benchmarking.benchmark import machine_facts, spread
from mri_edge.benchmarking.throttle import Watch
from mri_edge.bundles.bundle import EMBEDDED, embedded_models
from mri_edge.device.machine import installed
from mri_edge.inference.tuned_profile import library_versions

ROUNDS, BUSY_ROUNDS = 4, 2
SCAN = records.CHECKOUT / "examples" / "mni152-slice-1.jpg"
BASELINE = "Keras script"


def commands() -> dict[str, list[str]]:
    """What is started, by its name in the record."""
    found = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "mri-edge --help": program("--help"),
    }
    for name in embedded_models():
        found[f"mri-edge predict, {name}"] = program("predict", SCAN, "--json", "--model", name)
        found[f"bare ONNX Runtime script, {name}"] = script(
            "bare_onnxruntime.py", EMBEDDED / name / "model.int8.onnx", SCAN
        )
    keras: Path = bundles()["vgg16"].folder / "model.keras"
    if keras.is_file():
        found[BASELINE] = script("keras_predict.py", keras, SCAN)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Start everything in turn, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the committed record")
    parser.add_argument("--busy", action="store_true", help="for a machine with other work: CPU time, of all threads")
    chosen = parser.parse_args(arguments)
    rounds, watch = BUSY_ROUNDS if chosen.busy else ROUNDS, Watch()
    seconds = alternate(commands(), rounds, cpu_seconds if chosen.busy else wall_seconds)
    rows = {name: {"seconds": asdict(spread(values))} for name, values in seconds.items()}
    if BASELINE in seconds:
        for name, values in seconds.items():
            pairs = zip(seconds[BASELINE], values, strict=True)
            rows[name]["times_faster"] = asdict(spread(slow / fast for slow, fast in pairs))
    record = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "libraries": library_versions() | installed(("tensorflow", "keras")),
        "busy": chosen.busy,
        "rounds": rounds,
        "baseline": BASELINE,
        "disturbed": list(watch.marks()),
        "rows": rows,
    }
    records.save("cold_start", record, committed=chosen.record)
    for name, row in rows.items():
        print(f"{row['seconds']['value'] * 1e3:>8.0f} ms  {name}")


if __name__ == "__main__":
    main()
