"""Every artefact in every engine beside what people would use instead: the same images, threads and load for all.

    python benchmarks/compare.py              # minutes; wants a quiet machine; writes build/bench/compare.json
    python benchmarks/compare.py --record     # writes benchmarks/results/KIND/compare.json, KIND of machine
    python benchmarks/compare.py --olive PY   # PY: a Python with olive-ai, whose best model joins in

Each subject is alone in a process of its own, and all run in turn, round by round. The bundles are those of
``subjects.py``; images are the reference's test images where the data folder is at hand, else the demo scans.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from macs import multiply_adds
from olive_peer import olive_model
from records import data_folder, reference_images, save
from subjects import CHECKOUT, SCALED_BACK, Subject, bundles, subjects_of

from mri_edge import Bundle
from mri_edge.authoring.intervals import wilson_interval
from mri_edge.benchmarking.benchmark import machine_facts, spread, stream
from mri_edge.benchmarking.throttle import Watch
from mri_edge.bundles.bundle import EMBEDDED
from mri_edge.commands.progress import track
from mri_edge.device.cpu import available_cpus
from mri_edge.device.machine import installed
from mri_edge.inference.prediction import NOTICE, decide
from mri_edge.inference.tuned_profile import library_versions
from mri_edge.scans.readers import picture

HERE = Path(__file__).parent
BASELINE = "vgg16: keras.Model.predict: model.keras"
# Together the queries support the 90th percentile.
ROUNDS, QUERIES, SECONDS, SAMPLES, BATCH = 3, 22, 1.0, 24, 8
BUSY_ROUNDS, BUSY_QUERIES = 2, 8
_LIBRARIES = ("tensorflow", "keras", "numpy", "pillow", "mlcommons-loadgen")
DEMO = sorted((CHECKOUT / "examples").glob("*.jpg"))
# mri_edge first: it keeps OpenVINO from reporting to its maker.
_APP = "import mri_edge; from openvino.tools.benchmark.main import main; main()"


def run_subject(one: Subject, tensors: Path, threads: int, *, answers: bool, busy: bool) -> dict[str, Any] | str:
    """One round of one subject in a new process, once with its ``answers`` to all images: figures, or the problem."""
    if one.peer == "benchmark_app":
        if busy:
            return "not available: it keeps its own clock, which counts what others took of the CPU"
        return _run_app(one, threads, np.load(tensors, mmap_mode="r").shape[1:])
    request = {
        "peer": one.peer,
        "model": str(one.model),
        "options": one.options,
        "threads": threads,
        "tensors": str(tensors),
        "seconds": SECONDS,
        "queries": QUERIES,
        "samples": SAMPLES,
        "batch": BATCH,
        "answers": answers,
        **({"runs": BUSY_QUERIES} if busy else {}),
    }
    command = [sys.executable, str(HERE / "run_peer.py"), json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def _run_app(one: Subject, threads: int, shape: Iterable[int]) -> dict[str, Any] | str:
    """``benchmark_app`` keeps its own time, on random pixels, and tells the median alone."""
    options = {"-m": one.model, "-d": "CPU", "-api": "sync", "-nireq": 1, "-nthreads": threads, "-hint": "none"}
    options |= {"-t": max(1, round(SECONDS)), "-shape": f"[1,{','.join(map(str, shape))}]"}
    command = [sys.executable, "-c", _APP, *(str(part) for pair in options.items() for part in pair)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Median: +([\d.]+) (ms|us)", done.stdout)
    if done.returncode or not found:
        return (done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["it said nothing"])[-1]
    return {"ms": [float(found[1]) / (1000 if found[2] == "us" else 1)]}


def row_of(
    one: Subject, rounds: list[dict[str, Any]], problem: str | None, bundle: Bundle, judges: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the record keeps of a subject; figures are left out where there are none."""
    size = one.model.stat().st_size
    row: dict[str, Any] = {
        "bundle": one.bundle,
        "title": one.title,
        "artefact": one.artefact,
        "size_bytes": size,
        "problem": problem,
    }
    if problem or not rounds:
        return row
    found = stream([reading["ms"] for reading in rounds])
    row |= {"model": asdict(found), "round_ms": [round(median(reading["ms"]), 4) for reading in rounds]}
    if "probabilities" not in rounds[0]:
        return row
    for name in {"load_ms", "first_ms", "rate", "peak_mib"} & set(rounds[0]):
        row[name] = asdict(spread(reading[name] for reading in rounds))
    if judges:
        manifest = bundle.manifest
        answer = np.array(rounds[0]["probabilities"], np.float32)
        reference = np.array([image["probabilities"] for image in judges], np.float32)
        truth = np.array([manifest.labels.index(image["label"]) for image in judges])
        own, keras = (decide(values, manifest.positive, manifest.threshold) for values in (answer, reference))
        row |= {
            "accuracy": asdict(wilson_interval(int((own == truth).sum()), len(truth))),
            "flips": int((own != keras).sum()),
            "mean_difference": float(np.abs(answer - reference).mean()),
        }
    return row


def ratios(rows: dict[str, dict[str, Any]]) -> None:
    """Add to each row how many times faster than the baseline it is: the median of the rounds, which are pairs."""
    base = rows.get(BASELINE, {})
    for row in rows.values():
        if "round_ms" in base and "round_ms" in row:
            pairs = zip(base["round_ms"], row["round_ms"], strict=True)
            row["times_faster"] = asdict(spread(slow / fast for slow, fast in pairs))


def ships(name: str, bundle: Bundle) -> bool:
    """Whether a bundle is the whole of the embedded model of its name, or another training of the same network."""
    embedded, training = Bundle.open(EMBEDDED / name).manifest.training, bundle.manifest.training
    return {**training.details, SCALED_BACK: None} == {**embedded.details, SCALED_BACK: None}


def main(arguments: list[str] | None = None) -> None:
    """Measure everything, round by round, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the committed record")
    parser.add_argument("--olive", metavar="PYTHON", help="a Python with olive-ai; its model is kept in build/bench")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="for a machine with other work: one thread each, on a clock that stands still while it waits for a core",
    )
    chosen = parser.parse_args(arguments)
    rounds = BUSY_ROUNDS if chosen.busy else ROUNDS
    data, threads, held = data_folder(), 1 if chosen.busy else available_cpus(), bundles()
    with tempfile.TemporaryDirectory() as work:
        everything: list[tuple[Subject, Path]] = []
        judges, olive_said = {}, {}
        for name, bundle in held.items():
            folder = Path(work) / name
            folder.mkdir()
            judges[name] = reference_images(bundle, data)
            files = [data / one["file"] for one in judges[name] if data] or sorted(
                (CHECKOUT / "examples").glob("*.jpg")
            )
            fit = bundle.manifest.preprocessing.fit
            np.save(folder / "tensors.npy", np.stack([fit(picture.load(file)) for file in files]))
            olive, olive_said[name] = olive_model(chosen.olive, bundle, data, threads)
            recipe = olive_said[name].get("chosen", "")
            everything += [(one, folder / "tensors.npy") for one in subjects_of(name, bundle, olive, recipe)]
        readings: dict[str, list[dict[str, Any]]] = {one.key: [] for one, _ in everything}
        problems = {one.key: one.problem for one, _ in everything if one.problem}
        watch = Watch()
        turns = [turn for _ in range(rounds) for turn in everything]
        for one, tensors in track(turns, "compare", len(turns)):
            if one.key in problems:
                continue
            answer = run_subject(one, tensors, threads, answers=not readings[one.key], busy=chosen.busy)
            if isinstance(answer, str):
                problems[one.key] = answer
            else:
                readings[one.key].append(answer)
        marks = watch.marks()
        rows = {
            one.key: row_of(one, readings[one.key], problems.get(one.key), held[one.bundle], judges[one.bundle])
            for one, _ in everything
        }
    ratios(rows)
    drivers = [reading["driver"] for many in readings.values() for reading in many if "driver" in reading]
    record = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "libraries": library_versions() | installed(_LIBRARIES),
        "threads": threads,
        "rounds": rounds,
        "busy": chosen.busy,
        "driver": drivers[0] if drivers else None,
        "images": {name: len(many) for name, many in judges.items()},
        "multiply_adds": {name: multiply_adds(bundle) for name, bundle in held.items()},
        "scaled_back": {name: SCALED_BACK in bundle.manifest.training.details for name, bundle in held.items()},
        "thresholds": {name: bundle.manifest.threshold for name, bundle in held.items()},
        "ships": {name: ships(name, bundle) for name, bundle in held.items()},
        "olive": olive_said,
        "olive_asked": chosen.olive is not None,
        "disturbed": list(marks),
        "baseline": BASELINE,
        "rows": rows,
        "notice": f"{NOTICE} Not an MLPerf result.",
    }
    save("compare", record, committed=chosen.record)


if __name__ == "__main__":
    main()
