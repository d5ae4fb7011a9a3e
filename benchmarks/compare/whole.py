"""Measure scans a second from JPEG files to answers, and joules, beside the scripts that people would write instead.

    python -m benchmarks.compare.whole             # five minutes, on a quiet machine; writes build/bench/whole.json
    python -m benchmarks.compare.whole --record    # writes the committed record
    python -m benchmarks.compare.whole --olive PY  # PY: a Python with olive-ai; its best model takes part

Whole processes run in turn. What a process takes for one scan, its start, is subtracted. OpenVINO's benchmark_app
neither reads files nor prints answers: its row is the model alone, with as many requests at a time as it likes.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.compare.engines import APP, add_ratios
from benchmarks.compare.olive_peer import OPTION, olive_model
from benchmarks.compare.subjects import OLIVE, bundles
from benchmarks.processes import SCANS, output, program, script, wall_seconds
from benchmarks.records.store import facts, parse_arguments, save
from benchmarks.reference import data_folder
from mri_edge.benchmarking.benchmark import spread
from mri_edge.benchmarking.energy import EnergyMeter, find_meter
from mri_edge.benchmarking.throttle import Watch
from mri_edge.bundles.bundle import EMBEDDED, Bundle, embedded_models
from mri_edge.device.cpu import available_cpus

ROUNDS, BUSY_ROUNDS = 3, 2
KERAS = "Keras script"
BASELINE = f"vgg16: {KERAS}"
_SECONDS = 3.0  # of a process, without its start
_FEWEST, _MOST = 20, 4000  # scans of a process
APP_TITLE = "OpenVINO's benchmark_app, model alone"

Rate = tuple[float, float | None]
Command = Callable[[Sequence[Path]], list[str]]


def commands(name: str, bundle: Bundle, olive: Path | None) -> dict[str, Command]:
    """Return by title how to classify scans with a model: a command line with their files."""
    model = EMBEDDED / name / "model.int8.onnx"
    found: dict[str, Command] = {
        "mri-edge predict": lambda scans: program("predict", "--json", "--model", name, *scans),
        "mri-edge predict, openvino": lambda scans: program(
            "predict", "--json", "--model", name, "--engine", "openvino", *scans
        ),
        "plain ONNX Runtime script": lambda scans: script("bare_onnxruntime.py", model, 0, *scans),
    }
    if olive:
        found[OLIVE] = lambda scans: script("bare_onnxruntime.py", olive, 0, *scans)
    keras = bundle.folder / "model.keras"
    if f"{name}: {KERAS}" == BASELINE and keras.is_file():
        found[KERAS] = lambda scans: script("keras_predict.py", keras, *scans)
    return found


def rate_of(command: Command, scans: Sequence[Path], meter: EnergyMeter | None) -> Rate:
    """Return scans a second and, with a meter, joules for each thousand: of ``scans``, without the start."""

    def spent(scans: Sequence[Path]) -> tuple[float, float | None]:
        seconds: list[float] = []

        def run() -> None:
            seconds.append(wall_seconds(command(scans)))

        joules = meter.joules(run) if meter else run()
        return seconds[0], joules

    (start, joules_of_start), (whole, joules) = spent(scans[:1]), spent(scans)
    rate = (len(scans) - 1) / (whole - start)
    if joules is None or joules_of_start is None:
        return rate, None
    return rate, (joules - joules_of_start) / (len(scans) - 1) * 1e3


def enough(command: Command, files: Sequence[Path]) -> Sequence[Path]:
    """Return so many of the ``files`` that a process takes some seconds for them.

    A few files say little about the rate, because the start of a process varies by more than they take. So the number
    doubles until a process takes half of the time.
    """
    count = _FEWEST
    while count < _MOST and (count - 1) / (rate := rate_of(command, files[:count], None)[0]) < _SECONDS / 2:
        count *= 2
    return files[: min(_MOST, max(_FEWEST, round(rate * _SECONDS)))]


def app_rate(name: str) -> Rate:
    """Return how many random images a second OpenVINO's benchmark_app classifies on all cores."""
    size = Bundle.open(name).manifest.preprocessing
    options = f"-d CPU -hint throughput -t {_SECONDS:.0f} -shape [1,{size.height},{size.width},3]"
    lines = output([sys.executable, "-c", APP, "-m", EMBEDDED / name / "model.int8.onnx", *options.split()])
    found = re.search(r"Throughput: +([\d.]+) FPS", "\n".join(lines))
    if not found:
        raise RuntimeError((lines or ["it printed nothing"])[-1])
    return float(found[1]), None


def main() -> None:
    """Measure all subjects in turn, and write the record."""
    options = parse_arguments(__doc__, "fewer rounds", olive=OPTION)
    rounds, watch, meter = BUSY_ROUNDS if options.busy else ROUNDS, Watch(), find_meter()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number:04}.jpg" for number in range(_MOST)]
        for number, file in enumerate(files):
            shutil.copyfile(SCANS[number % len(SCANS)], file)
        subjects: dict[str, Callable[[], Rate]] = {}
        for name, bundle in bundles().items():
            olive, _ = olive_model(options.olive, bundle, data_folder(), available_cpus())
            for title, command in commands(name, bundle, olive if isinstance(olive, Path) else None).items():
                subjects[f"{name}: {title}"] = partial(rate_of, command, enough(command, files), meter)
            subjects[f"{name}: {APP_TITLE}"] = partial(app_rate, name)
        measured = [{key: measure() for key, measure in subjects.items()} for _ in range(rounds)]
    rows = {}
    for key in subjects:
        rows[key] = {"scans_per_s": asdict(spread(found[key][0] for found in measured))}
        if None not in (joules := [found[key][1] for found in measured]):
            rows[key]["joules_per_1000"] = asdict(spread(joules))
        print(f"{rows[key]['scans_per_s']['value']:>8.1f} scans/s  {key}")
    add_ratios(rows, BASELINE, {key: [1 / found[key][0] for found in measured] for key in rows})
    record = facts("tensorflow", "keras", "pillow") | {"busy": options.busy, "rounds": rounds, "baseline": BASELINE}
    record |= {"energy": meter.source if meter else None, "models": list(embedded_models())}
    save("whole", record | {"disturbed": list(watch.marks()), "rows": rows}, committed=options.record)


if __name__ == "__main__":
    main()
