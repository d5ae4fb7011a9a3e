"""Measure every artifact in every engine beside what people would use instead, with the same images, threads and load.

    python -m benchmarks.compare.engines              # minutes; needs a quiet machine; writes build/bench/compare.json
    python -m benchmarks.compare.engines --record     # writes benchmarks/results/KIND/compare.json
    python -m benchmarks.compare.engines --olive PY   # PY: a Python with olive-ai; its best model takes part

Each subject has a process of its own, and all run in turn, round by round. ``subjects.py`` lists them. The images are
the reference's test images, or the demo scans without the data folder.
"""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.compare.olive_peer import OPTION, olive_model
from benchmarks.compare.roof import multiply_adds
from benchmarks.compare.run_peer import run_in_process
from benchmarks.compare.subjects import SCALED_BACK, Subject, bundles, subjects_of
from benchmarks.processes import SCANS, output
from benchmarks.records.store import facts, parse_arguments, save
from benchmarks.reference import agreement, data_folder, reference_images, tensors_of
from mri_edge import Bundle
from mri_edge.benchmarking.benchmark import spread, stream
from mri_edge.benchmarking.throttle import Watch
from mri_edge.bundles.bundle import EMBEDDED
from mri_edge.commands.progress import track
from mri_edge.device.cpu import available_cpus
from mri_edge.inference.prediction import NOTICE

BASELINE = "vgg16: keras.Model.predict: model.keras"
# The queries of all rounds together are enough for the 90th percentile.
LOAD = {"seconds": 1.0, "queries": 22, "samples": 24, "batch": 8}
ROUNDS, BUSY_ROUNDS, BUSY_QUERIES = 3, 2, 8
# mri_edge is imported first: it keeps OpenVINO from reporting its use.
APP = "import mri_edge; from openvino.tools.benchmark.main import main; main()"


def run_subject(subject: Subject, tensors: Path, threads: int, *, answers: bool, busy: bool) -> dict[str, Any]:
    """Run one round of a subject in a new process; ``answers`` adds its probabilities of all images.

    Raises
    ------
    RuntimeError
        It does not run here; the message is the reason.
    """
    if subject.peer != "benchmark_app":
        request = LOAD | ({"runs": BUSY_QUERIES} if busy else {})
        request |= {"peer": subject.peer, "model": subject.model, "options": subject.options, "threads": threads}
        return run_in_process(**request, tensors=tensors, answers=answers)
    if busy:
        raise RuntimeError("not available: it keeps its own clock, which counts what others took of the CPU")
    # OpenVINO's benchmark_app measures itself on random pixels and prints only the median.
    shape = ",".join(map(str, np.load(tensors, mmap_mode="r").shape[1:]))
    options = f"-d CPU -api sync -nireq 1 -nthreads {threads} -hint none -t {LOAD['seconds']:.0f} -shape [1,{shape}]"
    lines = output([sys.executable, "-c", APP, "-m", subject.model, *options.split()])
    found = re.search(r"Median: +([\d.]+) (ms|us)", "\n".join(lines))
    if not found:
        raise RuntimeError((lines or ["it printed nothing"])[-1])
    return {"ms": [float(found[1]) / (1000 if found[2] == "us" else 1)]}


def row_of(
    subject: Subject, rounds: list[dict[str, Any]], problem: str | None, bundle: Bundle, images: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return a subject's row of the record; figures that were not measured are left out."""
    row: dict[str, Any] = {"bundle": subject.bundle, "title": subject.title, "artefact": subject.artifact}
    row |= {"size_bytes": subject.model.stat().st_size, "problem": problem}
    if problem:
        return row
    row["model"] = asdict(stream([reading["ms"] for reading in rounds]))
    row["round_ms"] = [round(median(reading["ms"]), 4) for reading in rounds]
    for name in {"load_ms", "first_ms", "rate", "peak_mib"} & set(rounds[0]):
        row[name] = asdict(spread(reading[name] for reading in rounds))
    if images and "probabilities" in rounds[0]:
        row |= agreement(bundle, images, np.array(rounds[0]["probabilities"], np.float32))
    return row


def add_ratios(rows: dict[str, dict[str, Any]], baseline: str, values: dict[str, list[float]]) -> None:
    """Add to each row how many times faster it is than the baseline: the median over rounds, which are paired."""
    for name in values if baseline in values else ():
        pairs = zip(values[baseline], values[name], strict=True)
        rows[name]["times_faster"] = asdict(spread(slow / fast for slow, fast in pairs))


def is_shipped_model(name: str, bundle: Bundle) -> bool:
    """Return whether the bundle is the embedded model of that name, not another training of the same network."""
    embedded, training = Bundle.open(EMBEDDED / name).manifest.training, bundle.manifest.training
    return {**training.details, SCALED_BACK: None} == {**embedded.details, SCALED_BACK: None}


def main() -> None:
    """Measure all subjects, round by round, and write the record."""
    options = parse_arguments(__doc__, "one thread each, on a clock that excludes the wait for a core", olive=OPTION)
    rounds = BUSY_ROUNDS if options.busy else ROUNDS
    data, threads, opened = data_folder(), 1 if options.busy else available_cpus(), bundles()
    images = {name: reference_images(bundle, data) for name, bundle in opened.items()}
    olive_facts = {}
    readings: dict[Subject, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as work:
        for name, bundle in opened.items():
            files = [data / image["file"] for image in images[name] if data] or SCANS
            np.save(Path(work) / f"{name}.npy", tensors_of(bundle, files))
            model, olive_facts[name] = olive_model(options.olive, bundle, data, threads)
            recipe = olive_facts[name].get("chosen", "")
            readings |= {subject: [] for subject in subjects_of(name, bundle, model, recipe)}
        problems = {subject: subject.problem for subject in readings if subject.problem}
        watch = Watch()
        for subject in track([*readings] * rounds, "compare", len(readings) * rounds):
            if subject not in problems:
                tensors, answers = Path(work) / f"{subject.bundle}.npy", not readings[subject]
                try:
                    reading = run_subject(subject, tensors, threads, answers=answers, busy=options.busy)
                    readings[subject].append(reading)
                except RuntimeError as error:
                    problems[subject] = str(error)
        disturbed = list(watch.marks())
        rows = {
            subject.key: row_of(subject, found, problems.get(subject), opened[subject.bundle], images[subject.bundle])
            for subject, found in readings.items()
        }
    add_ratios(rows, BASELINE, {key: row["round_ms"] for key, row in rows.items() if "round_ms" in row})
    record = {
        **facts("tensorflow", "keras", "numpy", "pillow"),
        "threads": threads,
        "rounds": rounds,
        "busy": options.busy,
        "images": {name: len(known) for name, known in images.items()},
        "multiply_adds": {name: multiply_adds(bundle) for name, bundle in opened.items()},
        "scaled_back": {name: SCALED_BACK in bundle.manifest.training.details for name, bundle in opened.items()},
        "thresholds": {name: bundle.manifest.threshold for name, bundle in opened.items()},
        "ships": {name: is_shipped_model(name, bundle) for name, bundle in opened.items()},
        "olive": olive_facts,
        "olive_asked": options.olive is not None,
        "disturbed": disturbed,
        "baseline": BASELINE,
        "rows": rows,
        "notice": f"{NOTICE} Not an MLPerf result.",
    }
    save("compare", record, committed=options.record)


if __name__ == "__main__":
    main()
