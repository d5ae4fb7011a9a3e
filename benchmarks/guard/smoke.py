"""Compare accuracy and relative latency with the committed record: the benchmark that CI runs.

    python -m benchmarks.guard.smoke             # about a minute; exit 5 if something got worse, naming the stage
    python -m benchmarks.guard.smoke --quick     # seconds: only the stages that need no separate process
    python -m benchmarks.guard.smoke --record    # after an intended change: write the record again

Only ratios are compared, each to a reference program in the same run (``stages.py``). What the record contains and a
run does not counts as worse.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.guard import accuracy, stages
from benchmarks.processes import CHECKOUT, SCANS
from benchmarks.records.store import data_folder, facts, load, same_machine, save, write
from mri_edge.benchmarking.throttle import Watch
from mri_edge.bundles.bundle import embedded_models
from mri_edge.inference.prediction import NOTICE
from mri_edge.inference.tuned_profile import library_versions

FRESH = CHECKOUT / "build" / "bench-smoke.json"
WORSE = 5  # the exit code of a gate that was not met
# Twenty runs in a row, beside a training that kept both cores busy, gave no false alarm. Another CPU or number of cores
# has other ratios.
_MARGIN_HERE = 1.5
_MARGIN_ELSEWHERE = 2.0
_NO_WORSE = 1.0  # elsewhere a ratio of 1 always passes, because int8 gains less on a CPU without dot products
_REPEATS = 2  # a real slowdown shows in every measurement, a disturbance does not


def run(*, quick: bool = False) -> dict[str, Any]:
    """Measure everything and return the fresh record."""
    watch, data = Watch(), data_folder()
    findings, ratios = [], []
    for model in embedded_models():
        findings += accuracy.check(model, data)
        ratios += stages.measure(model, SCANS, quick=quick)
    return {
        **facts(library_versions()),
        "disturbed": list(watch.marks()),
        "real_scans": data is not None,
        "latency": {ratio.what: ratio.to_dict() for ratio in ratios},
        "accuracy": [vars(finding) for finding in findings],
        "notice": NOTICE,
    }


def run_for_record() -> dict[str, Any]:
    """Return the median of three runs for each ratio: a lucky run would set a limit that later runs miss."""
    runs = [run() for _ in range(3)]
    middle = {
        what: sorted((measured["latency"][what] for measured in runs), key=lambda found: found["ratio"])[1]
        for what in runs[0]["latency"]
    }
    return runs[0] | {
        "latency": middle,
        "disturbed": sorted({mark for measured in runs for mark in measured["disturbed"]}),
    }


def measure_slow_models_again(fresh: dict[str, Any], record: dict[str, Any], *, quick: bool = False) -> None:
    """Measure the models with a slow stage again; the best measurement of each stage stays in ``fresh``."""
    for _ in range(_REPEATS):
        slow = {what for what, row, limit in _limits(fresh, record) if limit and row["ratio"] > limit}
        for model in sorted({what.partition(":")[0] for what in slow}):
            for ratio in stages.measure(model, SCANS, quick=quick):
                if ratio.value < fresh["latency"][ratio.what]["ratio"]:
                    fresh["latency"][ratio.what] = ratio.to_dict()


def compare(fresh: dict[str, Any], record: dict[str, Any], *, quick: bool = False) -> list[str]:
    """Return what got worse, in the order of the pipeline: first accuracy, then latency.

    What the record contains and this run does not is worse, too, except ratios that ``quick`` leaves out.
    """
    wrong = [
        (finding["stage"], f"{finding['what']}: {finding['detail']}")
        for finding in fresh["accuracy"]
        if finding["wrong"]
    ]
    wrong += [
        (finding["stage"], f"{finding['what']}: not compared, as it was for the record")
        for finding in _missing(fresh, record)
    ]
    slow = []
    for what, row, limit in _limits(fresh, record):
        if limit and row["ratio"] > limit:
            was = record["latency"][what]["ratio"]
            slow.append((row["stage"], f"{what}: {row['ratio']:.2f} times, was {was:.2f}, limit {limit:.2f}"))
    for what, row in record["latency"].items():
        if not quick and what not in fresh["latency"]:
            slow.append((row["stage"], f"{what}: not measured, as it was for the record"))
    wrong.sort(key=lambda item: accuracy.STAGES.index(item[0]))
    slow.sort(key=lambda item: stages.STAGES.index(item[0]))
    return [f"accuracy, {stage}: {text}" for stage, text in wrong] + [
        f"latency, {stage}: {text}" for stage, text in slow
    ]


def _missing(fresh: dict[str, Any], record: dict[str, Any]) -> list[dict[str, Any]]:
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


def _limits(fresh: dict[str, Any], record: dict[str, Any]) -> list[tuple[str, dict[str, Any], float | None]]:
    """Return each fresh row with the highest ratio that passes; None if the record lacks it."""
    here, known = same_machine(fresh, record), record["latency"]

    def limit(what: str) -> float | None:
        if what not in known:
            return None
        was = known[what]["ratio"]
        return was * _MARGIN_HERE if here else max(was * _MARGIN_ELSEWHERE, _NO_WORSE)

    return [(what, row, limit(what)) for what, row in fresh["latency"].items()]


def report(fresh: dict[str, Any], record: dict[str, Any] | None) -> list[str]:
    """Return a table of every ratio beside the record's, and a line for each stage of accuracy."""
    lines = [f"{'stage':<8}{'ratio':>8}{'record':>8}{'limit':>8}{'ms':>9}  ours / reference"]
    for what, row, limit in _limits(fresh, record or {"machine": {"cpu": None}, "latency": {}}):
        was = f"{record['latency'][what]['ratio']:.2f}" if record and limit else "new"
        shown = f"{limit:.2f}" if limit else "-"
        lines.append(f"{row['stage']:<8}{row['ratio']:>8.2f}{was:>8}{shown:>8}{row['ms']:>9.3f}  {what}")
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
    parser.add_argument("--out", type=Path, default=FRESH, help="the fresh record; default: build/bench-smoke.json")
    options = parser.parse_args(arguments)
    if options.record and options.quick:
        parser.error("--record needs all stages: leave out --quick")
    record, target = None, options.out
    if options.record:
        fresh = run_for_record()
        target = save("smoke", fresh, committed=True)
    else:
        record, fresh = load("smoke"), run(quick=options.quick)
        if record:
            measure_slow_models_again(fresh, record, quick=options.quick)
        write(target, fresh)
    print("\n".join(report(fresh, record)))
    worse = compare(fresh, record, quick=options.quick) if record else []
    for line in worse:
        print(f"WORSE  {line}")
    print(f"{'WORSE' if worse else 'ok'}: {target}")
    return WORSE if worse else 0


if __name__ == "__main__":
    sys.exit(main())
