"""Compare accuracy and relative latency with the committed record: the benchmark that CI runs.

    python -m benchmarks.guard.smoke                  # some minutes; exit 5 if something got worse, naming the stage
    python -m benchmarks.guard.smoke --quick          # seconds: only the stages that need no separate process
    python -m benchmarks.guard.smoke --record         # after an intended change: write the record again
    python -m benchmarks.guard.smoke --against FILE   # compare with what an earlier run wrote to build/bench-smoke.json

On the machine of the record, or of FILE, a stage that takes 20% longer is worse (``benchmarks.guard.sensitivity``).

Only ratios are compared, each to a reference program in the same run (``stages.py``). What the record contains and a
run does not counts as worse.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from benchmarks.guard import accuracy, stages
from benchmarks.processes import CHECKOUT, SCANS
from benchmarks.records.store import facts, load, same_machine, save, write
from benchmarks.reference import data_folder
from mri_edge.benchmarking.throttle import Watch
from mri_edge.bundles.bundle import embedded_models
from mri_edge.inference.prediction import NOTICE
from mri_edge.scans.readers import dicom

_NO_DICOM = dicom.missing() is not None
FRESH = CHECKOUT / "build" / "bench-smoke.json"
WORSE = 5  # the exit code of a gate that was not met
# A stage that is 20% slower exceeds this even if the record was slow. Another CPU or number of cores has other ratios.
_MARGIN_HERE = 1.12
_MARGIN_ELSEWHERE = 2.0
_NO_WORSE = 1.0  # elsewhere a ratio of 1 always passes, because int8 gains less on a CPU without dot products
_REPEATS = 12  # a real slowdown shows in every measurement, a disturbance does not
_RECORD_RUNS = 5
_ORDER = [("accuracy", stage) for stage in accuracy.STAGES] + [("latency", stage) for stage in stages.STAGES]

Record = dict[str, Any]


def run(wanted: Collection[str] = stages.STAGES, models: Sequence[str] = ()) -> Record:
    """Measure everything, or the wanted stages of some models, and return the fresh record."""
    watch, data, models = Watch(), data_folder(), models or embedded_models()
    findings = [vars(finding) for model in models for finding in accuracy.check(model, data)]
    latency = _latency(wanted, models)
    return {
        **facts(),
        "disturbed": list(watch.marks()),
        "real_scans": data is not None,
        "latency": latency,
        "accuracy": findings,
        "notice": NOTICE,
    }


def _latency(wanted: Collection[str], models: Sequence[str]) -> stages.Rows:
    return {what: row for model in models for what, row in stages.measure(model, SCANS, wanted).items()}


def run_for_record(wanted: Collection[str] = stages.STAGES, models: Sequence[str] = ()) -> Record:
    """Combine several runs, because a stage that seems slow later is also measured several times."""
    models = models or embedded_models()
    record = run(wanted, models)
    runs = [record["latency"], *(_latency(wanted, models) for _ in range(_RECORD_RUNS - 1))]
    return record | {"latency": {what: stages.combine([rows[what] for rows in runs]) for what in record["latency"]}}


def measure_slow_stages_again(fresh: Record, record: Record) -> None:
    """Measure the slow stages of each model again; all measurements of each are combined in ``fresh``."""
    found = {what: [row] for what, row in fresh["latency"].items()}
    for _ in range(_REPEATS):
        slow = {(what.partition(":")[0], fresh["latency"][what]["stage"]) for what in _slow(fresh, record)}
        for model, stage in sorted(slow):
            for what, row in stages.measure(model, SCANS, [stage]).items():
                found[what].append(row)
                fresh["latency"][what] = stages.combine(found[what])


def compare(fresh: Record, record: Record, wanted: Collection[str] = stages.STAGES) -> list[str]:
    """Return what got worse, in the order of the pipeline: first accuracy, then latency.

    What the record contains and this run does not is worse, too, except stages that were not wanted.
    """
    worse = [
        ("accuracy", finding["stage"], f"{finding['what']}: {finding['detail']}")
        for finding in fresh["accuracy"]
        if finding["wrong"]
    ]
    worse += [
        ("accuracy", finding["stage"], f"{finding['what']}: not compared, as it was for the record")
        for finding in _missing(fresh, record)
    ]
    for what, limit in _slow(fresh, record).items():
        row, was = fresh["latency"][what], record["latency"][what]["ratio"]
        text = f"{what}: {row['ratio']:.2f} times, was {was:.2f}, limit {limit:.2f}"
        worse.append(("latency", row["stage"], text))
    worse += [
        ("latency", row["stage"], f"{what}: not measured, as it was for the record")
        for what, row in record["latency"].items()
        if row["stage"] in wanted and what not in fresh["latency"] and not (_NO_DICOM and what.endswith(stages.DICOM))
    ]
    worse.sort(key=lambda item: _ORDER.index(item[:2]))
    return [f"{kind}, {stage}: {text}" for kind, stage, text in worse]


def _of_models(record: Record, models: Collection[str]) -> Record:
    """Return the part of a record that is about some models."""
    return record | {
        "latency": {what: row for what, row in record["latency"].items() if what.partition(":")[0] in models},
        "accuracy": [finding for finding in record["accuracy"] if finding["what"].partition(":")[0] in models],
    }


def _missing(fresh: Record, record: Record) -> list[dict[str, Any]]:
    """Return comparisons of the record that this run lacks and could have made here."""
    made = {(finding["stage"], finding["what"]) for finding in fresh["accuracy"]}
    without_openvino = "openvino" not in fresh["libraries"]
    return [
        finding
        for finding in record["accuracy"]
        if (finding["stage"], finding["what"]) not in made
        and (fresh["real_scans"] or accuracy.REAL not in finding["what"])
        and not (without_openvino and finding["what"].endswith("in openvino"))
    ]


def _limits(fresh: Record, record: Record | None) -> dict[str, float]:
    """Return the highest ratio that passes for each row of the record."""
    if record is None:
        return {}
    ratios = {what: row["ratio"] for what, row in record["latency"].items()}
    if same_machine(fresh, record):
        return {what: ratio * _MARGIN_HERE for what, ratio in ratios.items()}
    return {what: max(ratio * _MARGIN_ELSEWHERE, _NO_WORSE) for what, ratio in ratios.items()}


def _slow(fresh: Record, record: Record) -> dict[str, float]:
    """Return the limits that a row of this run exceeds."""
    measured = fresh["latency"]
    limits = _limits(fresh, record).items()
    return {what: limit for what, limit in limits if what in measured and measured[what]["ratio"] > limit}


def report(fresh: Record, record: Record | None) -> list[str]:
    """Return a table of every ratio beside the record's, and a line for each stage of accuracy."""
    lines, limits = (
        [f"{'stage':<8}{'ratio':>8}{'record':>8}{'limit':>8}{'ms':>9}  ours / reference"],
        _limits(fresh, record),
    )
    for what, row in fresh["latency"].items():
        was, limit = "new", "-"
        if record and what in limits:
            was, limit = f"{record['latency'][what]['ratio']:.2f}", f"{limits[what]:.2f}"
        lines.append(f"{row['stage']:<8}{row['ratio']:>8.2f}{was:>8}{limit:>8}{row['ms']:>9.3f}  {what}")
    for stage in accuracy.STAGES:
        wrong = [finding["wrong"] for finding in fresh["accuracy"] if finding["stage"] == stage]
        if wrong:
            lines.append(f"{stage}: {len(wrong) - sum(wrong)} of {len(wrong)} comparisons right")
    if "openvino" not in fresh["libraries"]:
        lines.append("OpenVINO is not installed: nothing was compared in it")
    if not fresh["real_scans"]:
        lines.append("no reference test images (MRI_EDGE_DATA): accuracy was checked on drawn scans only")
    return lines + [f"disturbed: {mark}" for mark in fresh["disturbed"]]


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the fresh record and compare; return 0 or WORSE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out the stages that need separate processes")
    parser.add_argument("--record", action="store_true", help="write the committed record for this kind of machine")
    parser.add_argument("--stage", action="append", choices=stages.STAGES, help="a stage to measure; default: all")
    parser.add_argument("--model", action="append", help="an embedded model to measure; default: all")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with this record, not the committed one")
    parser.add_argument("--out", type=Path, default=FRESH, help="the fresh record; default: build/bench-smoke.json")
    options = parser.parse_args(arguments)
    wanted = options.stage or (stages.IN_PROCESS if options.quick else stages.STAGES)
    if options.record and (options.quick or options.stage or options.model):
        parser.error("--record needs all stages of all models: leave out the other options")
    if options.record:
        record, fresh = None, run_for_record()
        save("smoke", fresh, committed=True)
    else:
        record = json.loads(options.against.read_text(encoding="utf-8")) if options.against else load("smoke")
        fresh = run(wanted, options.model or ())
        if record:
            if options.model:
                record = _of_models(record, options.model)
            measure_slow_stages_again(fresh, record)
        write(options.out, fresh)
    print("\n".join(report(fresh, record)))
    worse = compare(fresh, record, wanted) if record else []
    for line in worse:
        print(f"WORSE  {line}")
    print("WORSE" if worse else "ok")
    return WORSE if worse else 0


if __name__ == "__main__":
    sys.exit(main())
