"""The benchmark that CI runs: accuracy and relative latency, compared with the committed record.

    python benchmarks/smoke.py                 # about a minute; exit 5 if something got worse, naming the stage
    python benchmarks/smoke.py --quick         # seconds: the stages that need no process of their own
    python benchmarks/smoke.py --record        # after a change that is meant: write the record anew

Only ratios are compared, each against a plain ruler in the same run: see ``stages.py``. What the record holds and is
not measured any more got worse.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import accuracy
import stages
from records import CHECKOUT, data_folder, load, same_machine, save

from mri_edge.benchmarking.benchmark import machine_facts
from mri_edge.benchmarking.throttle import Watch
from mri_edge.bundles.bundle import embedded_models
from mri_edge.inference.prediction import NOTICE
from mri_edge.inference.tuned_profile import library_versions
from mri_edge.storage.atomic import make_folder, write_whole

FRESH = CHECKOUT / "build" / "bench-smoke.json"
SCANS = sorted((CHECKOUT / "examples").glob("*.jpg"))
WORSE = 5  # the exit code of a gate that was not met
# Twenty runs in a row, beside a training that kept both cores busy, gave no false alarm. Another CPU or number of cores
# has other ratios.
_MARGIN_HERE = 1.5
_MARGIN_ELSEWHERE = 2.0
_NO_WORSE = 1.0  # elsewhere: as fast as the ruler is never too slow, since int8 gains less where dot products lack
# What got slower is slow whenever it is measured; what was disturbed is not.
_SECOND_LOOKS = 2


def run(*, quick: bool = False) -> dict[str, Any]:
    """Measure everything: the fresh record, as plain objects."""
    watch, data = Watch(), data_folder()
    findings, ratios = [], []
    for model in embedded_models():
        findings += accuracy.check(model, data)
        ratios += _ratios(model, quick=quick)
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "libraries": library_versions(),
        "disturbed": list(watch.marks()),
        "real_scans": data is not None,
        "latency": {one.what: _plain(one) for one in ratios},
        "accuracy": [vars(one) for one in findings],
        "notice": NOTICE,
    }


def run_for_record() -> dict[str, Any]:
    """As ``run``, each ratio the median of three runs: a lucky one would make the limit too low for all others."""
    runs = [run() for _ in range(3)]
    middle = {
        what: sorted((one["latency"][what] for one in runs), key=lambda found: found["ratio"])[1]
        for what in runs[0]["latency"]
    }
    return runs[0] | {"latency": middle, "disturbed": sorted({mark for one in runs for mark in one["disturbed"]})}


def look_again(fresh: dict[str, Any], record: dict[str, Any], *, quick: bool = False) -> None:
    """Measure again a model of which a stage seems slower; of all measurements the best stays in ``fresh``."""
    for _ in range(_SECOND_LOOKS):
        slower = {what for what, one, limit in _limits(fresh, record) if limit and one["ratio"] > limit}
        for model in sorted({what.partition(":")[0] for what in slower}):
            for one in _ratios(model, quick=quick):
                if one.value < fresh["latency"][one.what]["ratio"]:
                    fresh["latency"][one.what] = _plain(one)


def _ratios(model: str, *, quick: bool) -> list[stages.Ratio]:
    ratios = stages.in_process(model, SCANS)
    return ratios if quick else ratios + stages.engines(model, SCANS) + stages.starts(model, SCANS[0])


def _plain(one: stages.Ratio) -> dict[str, Any]:
    return {
        "stage": one.stage,
        "ratio": round(one.value, 4),
        "ms": round(one.ms, 4),
        "ruler_ms": round(one.ruler_ms, 4),
    }


def compare(fresh: dict[str, Any], record: dict[str, Any], *, quick: bool = False) -> list[str]:
    """What got worse, in the order of the pipeline: first accuracy, then latency; empty if nothing did.

    What the record holds and this run does not is worse too; ``quick`` runs are not asked for all ratios.
    """
    wrong = [(one["stage"], f"{one['what']}: {one['detail']}") for one in fresh["accuracy"] if one["wrong"]]
    wrong += [(one["stage"], f"{one['what']}: not compared, as it was for the record") for one in _gone(fresh, record)]
    slower = [
        (
            one["stage"],
            f"{what}: {one['ratio']:.2f} times, was {record['latency'][what]['ratio']:.2f}, limit {limit:.2f}",
        )
        for what, one, limit in _limits(fresh, record)
        if limit and one["ratio"] > limit
    ]
    if not quick:
        slower += [
            (one["stage"], f"{what}: not measured, as it was for the record")
            for what, one in record["latency"].items()
            if what not in fresh["latency"]
        ]
    wrong.sort(key=lambda item: accuracy.STAGES.index(item[0]))
    slower.sort(key=lambda item: stages.STAGES.index(item[0]))
    return [
        f"{kind}, {stage}: {words}"
        for kind, found in (("accuracy", wrong), ("latency", slower))
        for stage, words in found
    ]


def _gone(fresh: dict[str, Any], record: dict[str, Any]) -> list[dict[str, Any]]:
    """Comparisons of accuracy that the record holds and this run lacks, without a reason that the run tells itself."""
    made = {(one["stage"], one["what"]) for one in fresh["accuracy"]}
    without_openvino = "openvino" not in fresh["libraries"]
    return [
        one
        for one in record["accuracy"]
        if (one["stage"], one["what"]) not in made
        and (fresh["real_scans"] or accuracy.REAL not in one["what"])
        and not (without_openvino and one["what"].endswith("in openvino"))
    ]


def _limits(fresh: dict[str, Any], record: dict[str, Any]) -> list[tuple[str, dict[str, Any], float | None]]:
    """Each fresh ratio with the highest that passes; None for one that the record lacks."""
    here = same_machine(fresh, record)

    def limit(what: str) -> float | None:
        if what not in record["latency"]:
            return None
        was = record["latency"][what]["ratio"]
        return was * _MARGIN_HERE if here else max(was * _MARGIN_ELSEWHERE, _NO_WORSE)

    return [(what, one, limit(what)) for what, one in fresh["latency"].items()]


def report(fresh: dict[str, Any], record: dict[str, Any] | None) -> list[str]:
    """For people: every ratio beside the record's, and a line for each stage of accuracy."""
    lines = [f"{'stage':<8}{'ratio':>8}{'record':>8}{'limit':>8}{'ms':>9}  ours / ruler"]
    for what, one, limit in _limits(fresh, record or {"machine": {"cpu": None}, "latency": {}}):
        was = f"{record['latency'][what]['ratio']:.2f}" if record and limit else "new"
        most = f"{limit:.2f}" if limit else "-"
        lines.append(f"{one['stage']:<8}{one['ratio']:>8.2f}{was:>8}{most:>8}{one['ms']:>9.3f}  {what}")
    for stage in accuracy.STAGES:
        found = [one for one in fresh["accuracy"] if one["stage"] == stage]
        if found:
            wrong = sum(one["wrong"] for one in found)
            lines.append(f"{stage}: {len(found) - wrong} of {len(found)} comparisons right")
    if "openvino" not in fresh["libraries"]:
        lines.append("OpenVINO is not here, an extra that the tests do without: nothing was compared in it")
    if not fresh["real_scans"]:
        lines.append(
            "the reference's test images are not here (MRI_EDGE_DATA): accuracy was checked on drawn scans alone"
        )
    return lines + [f"disturbed: {mark}" for mark in fresh["disturbed"]]


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the fresh record, compare; the exit code is 0 or WORSE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out what needs processes of its own")
    parser.add_argument("--record", action="store_true", help="write the committed record of this kind of machine anew")
    parser.add_argument("--out", type=Path, default=FRESH, help="the fresh record; default: build/bench-smoke.json")
    chosen = parser.parse_args(arguments)
    if chosen.record and chosen.quick:
        parser.error("--record wants everything: leave --quick out")
    record = None if chosen.record else load("smoke")
    fresh = run_for_record() if chosen.record else run(quick=chosen.quick)
    if record:
        look_again(fresh, record, quick=chosen.quick)
    if chosen.record:
        target = save("smoke", fresh, committed=True)
    else:
        target = chosen.out
        make_folder(target.parent)
        write_whole(target, json.dumps(fresh, indent=1, ensure_ascii=False) + "\n")
    print("\n".join(report(fresh, record)))
    worse = compare(fresh, record, quick=chosen.quick) if record else []
    for line in worse:
        print(f"WORSE  {line}")
    print(f"{'WORSE' if worse else 'ok'}: {target}")
    return WORSE if worse else 0


if __name__ == "__main__":
    sys.exit(main())
