"""Measure cold starts: whole processes from the command line to the answer, in turn.

python -m benchmarks.compare.cold_start             # a minute, on a quiet machine; writes build/bench/cold_start.json
python -m benchmarks.compare.cold_start --record    # writes the committed record
"""

from __future__ import annotations

import sys
from dataclasses import asdict

from benchmarks.compare.engines import add_ratios
from benchmarks.compare.subjects import bundles
from benchmarks.processes import SCAN, alternate, cpu_seconds, program, script, wall_seconds
from benchmarks.records.store import facts, parse_arguments, save
from mri_edge.benchmarking.benchmark import spread
from mri_edge.benchmarking.throttle import Watch
from mri_edge.bundles.bundle import EMBEDDED, embedded_models

ROUNDS, BUSY_ROUNDS = 4, 2
BASELINE = "Keras script"


def commands() -> dict[str, list[str]]:
    """Return the command lines to measure, by name in the record."""
    found = {"python -c pass": [sys.executable, "-c", "pass"], "mri-edge --help": program("--help")}
    for name in embedded_models():
        model = EMBEDDED / name / "model.int8.onnx"
        found[f"mri-edge predict, {name}"] = program("predict", SCAN, "--json", "--model", name)
        found[f"bare ONNX Runtime script, {name}"] = script("bare_onnxruntime.py", model, 0, SCAN)
    keras = bundles()["vgg16"].folder / "model.keras"
    if keras.is_file():
        found[BASELINE] = script("keras_predict.py", keras, SCAN)
    return found


def main() -> None:
    """Measure all commands in turn, and write the record."""
    options = parse_arguments(__doc__, "CPU time, of all threads")
    rounds, watch = BUSY_ROUNDS if options.busy else ROUNDS, Watch()
    seconds = alternate(commands(), rounds, cpu_seconds if options.busy else wall_seconds)
    rows = {name: {"seconds": asdict(spread(values))} for name, values in seconds.items()}
    add_ratios(rows, BASELINE, seconds)
    record = facts("tensorflow", "keras") | {"busy": options.busy, "rounds": rounds, "baseline": BASELINE}
    save("cold_start", record | {"disturbed": list(watch.marks()), "rows": rows}, committed=options.record)
    for name, row in rows.items():
        print(f"{row['seconds']['value'] * 1e3:>8.0f} ms  {name}")


if __name__ == "__main__":
    main()
