"""Test the guard itself: plant a slowdown in each stage, which it must name, and let it run often without one.

python -m benchmarks.guard.sensitivity                             # each stage of `small` 20% slower
python -m benchmarks.guard.sensitivity --model lite --quiet-runs 20
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.guard import smoke, stages
from benchmarks.processes import CHECKOUT
from benchmarks.records.store import write

# Code that runs in each Python process of the guard. ``slower`` wraps a function of an object.
_PLANT = """
import atexit, sys
from time import perf_counter, process_time

def slower(owner, name):
    function = getattr(owner, name)
    def slow(*arguments, **named):
        start = perf_counter()
        result = function(*arguments, **named)
        end = perf_counter() + {part} * (perf_counter() - start)
        while perf_counter() < end:
            pass
        return result
    setattr(owner, name, slow)

def burn():
    end = process_time() * (1 + {part})
    while process_time() < end:
        pass

command = " ".join(sys.orig_argv)
"""
PLANTS = {
    "decode": """
if "benchmarks.guard.smoke" in command:
    from mri_edge.scans.readers import picture
    slower(picture, "load")
""",
    "resize": """
if "benchmarks.guard.smoke" in command:
    from mri_edge.scans.preprocessing import Preprocessing
    slower(Preprocessing, "resize_pictures")
""",
    "infer": """
if "mri_edge_engine" in command:
    from mri_edge.engines.onnxruntime import OnnxRuntimeEngine
    slower(OnnxRuntimeEngine, "run_outputs")
""",
    "rest": """
if "benchmarks.guard.smoke" in command:
    from mri_edge import Classifier
    slower(Classifier, "predict")
""",
    "start": """
if "mri-edge predict" in command:
    atexit.register(burn)
""",
}


def guard(folder: Path, stage: str | None, arguments: Sequence[object], part: float = 0.2) -> tuple[int, str]:
    """Run the guard with a slowdown planted in a stage, or without; return its exit code and output.

    ``folder`` gets a module that every Python process imports first; ``part`` is how much longer the stage takes.
    """
    planted = _PLANT.format(part=part) + PLANTS[stage] if stage else ""
    (folder / "sitecustomize.py").write_text(planted, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "benchmarks.guard.smoke",
        "--out",
        str(folder / "fresh.json"),
        *map(str, arguments),
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def first_worse(output: str) -> str:
    """Return the stage that the guard named first, or nothing."""
    worse = [line for line in output.splitlines() if line.startswith("WORSE  latency, ")]
    return worse[0].removeprefix("WORSE  latency, ").partition(":")[0] if worse else ""


def main() -> int:
    """Plant each slowdown, run the guard without one, and return 1 if it was wrong once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="embedded model; default: small")
    parser.add_argument("--stage", action="append", choices=stages.STAGES, help="default: all")
    parser.add_argument("--part", type=float, default=0.2, help="how much longer a stage takes; default: 0.2")
    parser.add_argument("--quiet-runs", type=int, default=1, help="runs without a slowdown; default: 1")
    options = parser.parse_args()
    wanted = options.stage or stages.STAGES
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record = folder / "record.json"
        write(record, smoke.run_for_record(wanted, [options.model]))
        arguments = ["--model", options.model, "--against", record]
        for stage in wanted:
            code, output = guard(folder, stage, [*arguments, "--stage", stage], options.part)
            right = code == smoke.WORSE and first_worse(output) == stage
            wrong += not right
            print(f"{'found' if right else 'MISSED'}: {stage} {options.part:.0%} slower", flush=True)
        only = [part for stage in wanted for part in ("--stage", stage)]
        for number in range(options.quiet_runs):
            code, output = guard(folder, None, [*arguments, *only])
            wrong += code != 0
            print(f"{'quiet' if code == 0 else 'FALSE ALARM'}: run {number + 1}, {first_worse(output)}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
