"""Export Keras' own networks to every format, and write the table network x format x verdict x ms x MB.

    python -m benchmarks.compare.networks                      # all: about half an hour on two cores
    python -m benchmarks.compare.networks --only ResNet50 --formats onnx,tflite
    python -m benchmarks.compare.networks --record             # also writes the committed record
    python -m benchmarks.compare.networks --record --keep      # the same, but only what the record lacks

Each network runs in a process of its own, one after the other. Weights are random, because nothing is downloaded, but
the statistics of the normalizations and the head are set from pictures: smooth noise, every second one with a bright
disc, which the head detects. So answers differ between pictures, and a flip means something.

Random weights are a hard case for integers: training makes activations smaller and more alike than chance does. So "not
met" for int8 says nothing about a trained network; a format that cannot be made says the same about both.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.guard.undisturbed import seconds_of
from benchmarks.processes import CHECKOUT
from benchmarks.records.store import facts, kind_of_machine, load, load_fresh, parse_arguments, same_machine, save

NETWORKS = (
    "MobileNetV2",
    "MobileNetV3Small",
    "EfficientNetB0",
    "NASNetMobile",
    "DenseNet121",
    "ResNet50",
    "Xception",
    "InceptionV3",
    "ConvNeXtTiny",
    "EfficientNetV2B0",
)
SCALED_INSIDE = ("MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny")  # these take 0 to 255
SIDE = 96  # pixels; the smallest size that all of them take
PICTURES, CALIBRATION = 96, 24  # the gate compares the other 72: it needs 59 without a changed label
RUNS = 10  # of one picture on one thread; the fastest counts, because other programs only make a run slower
LAYER_SCALE = 0.3  # ConvNeXt starts it at 1e-6, which switches its blocks off; training raises it


def main() -> None:
    """Run the networks one after the other, and print or record the table."""
    options = parse_arguments(
        __doc__,
        "nothing changes, only single-thread times without waiting are measured",
        only={"help": "networks, separated by commas", "default": ",".join(NETWORKS)},
        formats={"help": "formats, separated by commas (default: all)", "default": ""},
        keep={"action": "store_true", "help": "keep what the last run, or else the committed record, has measured"},
        child={"help": "export this network here, and print JSON"},
    )
    if options.child:
        print(json.dumps(export_network(options.child, tuple(options.formats.split(",")))))
        return
    from mri_edge.export.formats import format_names

    rows = _measured_rows() if options.keep else {}
    wanted = tuple(filter(None, options.formats.split(","))) or format_names()
    for name in options.only.split(","):
        kept = rows.get(name, {}).get("formats", {})
        missing = ",".join(format_name for format_name in wanted if format_name not in kept)
        if not missing:
            continue
        command = [sys.executable, "-m", "benchmarks.compare.networks", "--child", name, "--formats", missing]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr}")
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        made = kept | rows[name]["formats"]
        rows[name]["formats"] = {format_name: made[format_name] for format_name in sorted(made)}
        print("\n".join(table({name: rows[name]})), flush=True)
        save("networks", _record(rows), committed=False)
    if options.record:
        save("networks", _record(rows), committed=True)


def _measured_rows() -> dict[str, Any]:
    """The networks of the last run, or else of the committed record: none if another machine or library made them."""
    here = _record({})
    record = load_fresh("networks") or load("networks", kind_of_machine(here["machine"]))
    if record is None or not same_machine(here, record) or not record["libraries"].items() <= here["libraries"].items():
        return {}
    return dict(record["networks"])


def _record(rows: dict[str, Any]) -> dict[str, Any]:
    return {
        **facts("tensorflow", "keras", "tf2onnx", "onnx"),
        "pixels": SIDE,
        "compared_pictures": PICTURES - CALIBRATION,
        "threads": 1,
        "networks": rows,
    }


def table(rows: dict[str, Any]) -> list[str]:
    """The Markdown table of a record's ``networks``."""
    lines = [
        "| network | format | verdict | max. Δp | mean Δp | labels changed | ms | MB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for network, row in rows.items():
        for name, made in row["formats"].items():
            if "error" in made:
                lines.append(f"| {network} | `{name}` | {made['error']} | | | | | |")
                continue
            figures = f"{made['max']:.1e} | {made['mean']:.1e} | {made['flips']} | {made['ms']:.1f} | {made['mb']:.1f}"
            reasons = "".join(f": {reason.replace('|Δp|', 'Δp')}" for reason in made["reasons"])
            lines.append(f"| {network} | `{name}` | {made['verdict']}{reasons} | {figures} |")
    return lines


def export_network(name: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Build a network, export it through the gate in the formats ``names``, and time its artifacts."""
    from mri_edge.authoring.quiet import load_keras, quiet

    load_keras("export")
    from mri_edge.authoring.writer import new_bundle
    from mri_edge.export.exporter import ExportRefusedError, Failure, Settings, Source, add_artifacts
    from mri_edge.export.options import ModelDescription
    from mri_edge.export.sources.external_model import describe, split_pictures
    from mri_edge.scans.preprocessing import Preprocessing

    failures: dict[str, Failure] = {}
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place, quiet():
        folder, data = Path(place) / "bundle", Path(place) / "data"
        preprocessing = Preprocessing(SIDE, SIDE, scale=1 / 127.5, mean=(1.0, 1.0, 1.0))
        if name in SCALED_INSIDE:
            preprocessing = Preprocessing(SIDE, SIDE, scale=1.0)
        pixels, labels = _draw(data)
        model = _build(name, preprocessing.normalize(pixels), labels)
        described = ModelDescription(folder, data, {"no": ["no"], "yes": ["yes"]}, 1, preprocessing)
        split = split_pictures(data, described.classes, 0)
        manifest = describe(described, split, 0)
        settings = Settings(names, data, calibration_images=CALIBRATION)

        def leave_out(failure: Failure) -> None:
            failures[failure.format] = failure

        def measure(step: str) -> None:  # before the check, because a file that misses its gate is deleted
            for path in folder.parent.glob(".bundle.*/tmp*/model*"):
                if step.startswith(f"checking {path.name} on"):
                    times[path.name] = _milliseconds(path, pixels[:1])

        try:
            with new_bundle(folder, manifest) as writer:
                source = Source(model, manifest, split, {"file": name, "sha256": "0" * 64})
                results = add_artifacts(writer, source, settings, measure, leave_out)
        except ExportRefusedError as error:
            results = error.results
    by_file = {result.artifact.file: result for result in results}
    return {"parameters": model.count_params(), "formats": {n: _row(n, by_file, failures, times) for n in names}}


def _row(name: str, by_file: dict[str, Any], failures: dict[str, Any], times: dict[str, float]) -> dict[str, Any]:
    from mri_edge.export.formats import find_format

    result = by_file.get(find_format(name).FILE)
    if result is None:
        return {"error": failures[name].error.problem}
    comparison = result.comparison
    return {
        "verdict": comparison.verdict,
        "reasons": list(comparison.reasons),
        "max": comparison.max_difference,
        "mean": comparison.mean_difference,
        "flips": f"{len(comparison.flips)}/{comparison.images}",
        "accuracy": comparison.accuracy.value,
        "ms": times[result.artifact.file],
        "mb": result.artifact.size_bytes / 1e6,
    }


def _milliseconds(path: Path, pixels: Any) -> float:
    from mri_edge.engines import open_engine

    with closing(open_engine(path, provider="cpu", threads=1)) as engine:
        engine.run(pixels)
        return 1e3 * min(seconds_of(lambda: engine.run(pixels)) for _ in range(RUNS))


def _draw(data: Path) -> tuple[Any, Any]:
    """Write the pictures below ``data/no`` and ``data/yes``; return them, uint8 (N, SIDE, SIDE, 3), and the labels."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    pixels = []
    for index in range(PICTURES):
        coarse = Image.fromarray(rng.integers(20, 120, (8, 8), dtype=np.uint8))
        picture = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float) + rng.normal(
            0, 6, (SIDE, SIDE)
        )
        if index % 2:
            row, column = rng.integers(SIDE // 4, 3 * SIDE // 4, 2)
            picture[(rows - row) ** 2 + (columns - column) ** 2 < (SIDE // 7) ** 2] += rng.uniform(60, 120)
        path = data / ("yes" if index % 2 else "no") / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(picture.clip(0, 255).astype(np.uint8)).convert("RGB")
        image.save(path)
        pixels.append(np.asarray(image))
    return np.stack(pixels), np.arange(PICTURES) % 2


def _build(name: str, values: Any, labels: Any) -> Any:
    """A network of ``keras.applications`` with statistics and a head from the pictures."""
    import keras
    from sklearn.linear_model import LogisticRegression

    keras.utils.set_random_seed(1)
    build = getattr(keras.applications, name)
    base = build(include_top=False, weights=None, input_shape=(SIDE, SIDE, 3), pooling="avg")
    for layer in base._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # one batch in training mode sets its statistics
        elif type(layer).__name__ == "LayerScale":
            layer.gamma.assign(np.full(layer.gamma.shape, LAYER_SCALE, np.float32))
    base(values[:48], training=True)
    batches = [values[start : start + 16] for start in range(0, len(values), 16)]
    features = np.concatenate([np.asarray(base(batch, training=False)) for batch in batches])
    mean, scale = features.mean(axis=0), features.std()
    fitted = LogisticRegression(max_iter=2000).fit((features - mean) / scale, labels)
    weights = fitted.coef_[0] / scale
    head = keras.layers.Dense(2, activation="softmax")
    model = keras.Model(base.input, head(base.output), name=name.lower())
    kernel = np.stack([np.zeros_like(weights), weights], axis=1)
    head.set_weights([kernel.astype(np.float32), np.array([0, fitted.intercept_[0] - mean @ weights], np.float32)])
    return model


if __name__ == "__main__":
    main()
