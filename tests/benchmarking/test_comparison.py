"""A benchmark is compared only with one of the same conditions, and fails only if every round is slower."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mri_edge.benchmarking.benchmark import PROFILES, Report, Row, Spread, Stream, Subject, machine_facts
from mri_edge.benchmarking.comparison import check_conditions, compare, read_report
from mri_edge.bundles.manifest import Artifact, TensorSpec
from mri_edge.errors import GateError, UsageError
from mri_edge.inference.selection import DEFAULT_BATCH

LIMIT = 1.1


def stream(value: float, low: float, high: float) -> Stream:
    return Stream(12, Spread(value, low, high), {"p50": value, "p90": None, "p99": None}, high)


def row(**changes) -> Row:
    figures = {
        "provider": "CPUExecutionProvider",
        "threads": 2,
        "load_ms": Spread(50, 40, 60),
        "first_ms": Spread(2, 2, 2),
        "model": stream(1.0, 0.9, 1.1),
        "model_rate": Spread(1000, 900, 1100),
        "file": stream(2.0, 1.9, 2.1),
        "file_rate": Spread(800, 700, 900),
    }
    return Row("model.onnx", "onnxruntime", "float32", 100, None, **(figures | changes))


def report(*rows: Row, **changes) -> Report:
    facts = {
        "bundle": "tiny 1 (12345678)",
        "created": "2026-01-01T00:00:00+00:00",
        "profile": "smoke",
        "plan": PROFILES["smoke"],
        "scans": 2,
        "batch": DEFAULT_BATCH,
        "server_ms": None,
        "machine": machine_facts(),
        "libraries": {"onnxruntime": "1.30"},
        "rows": rows or (row(),),
        "marks": (),
        "model": "tiny",
    }
    return Report(**(facts | changes))


def subjects(*engines: str, problem: str | None = None) -> list[Subject]:
    tensor = TensorSpec("x", "uint8", (1,))
    artifact = Artifact("model.onnx", "onnx", "float32", 100, "0" * 64, tensor, tensor)
    return [Subject(artifact, engine, problem) for engine in engines or ("onnxruntime",)]


def check(before: Report, found: list[Subject] | None = None) -> None:
    check_conditions(before, found or subjects(), model="tiny", profile="smoke", scans=2, server_ms=None)


def verdicts(before: Row, now: Row) -> dict[str, str | None]:
    ratios = compare(report(before), report(now), LIMIT).ratios
    return {ratio.figure: ratio.verdict for ratio in ratios}


def test_report_survives_its_json(tmp_path):
    written = report(row(model_joules=Spread(0.1, 0.1, 0.2)), energy_source="RAPL package-0")
    file = tmp_path / "old.json"
    file.write_text(json.dumps(written.to_dict()), encoding="utf-8")
    assert read_report(file) == written


def test_report_of_an_earlier_version_is_read(tmp_path):
    """Energy and the name of the model were added later."""
    plain = report().to_dict()
    del plain["model"], plain["energy_source"]
    for key in ("model_joules", "file_joules"):
        del plain["rows"][0][key]
    file = tmp_path / "old.json"
    file.write_text(json.dumps(plain), encoding="utf-8")
    check(read_report(file))


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"rows": []}', json.dumps(report(row(model=None)).to_dict())])
def test_file_that_is_no_report_is_refused(tmp_path, content):
    file = tmp_path / "old.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"old\.json.*bench --json"):
        read_report(file)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"old\.json: cannot be read \(No such file"):
        read_report(tmp_path / "old.json")


def test_same_conditions_are_accepted():
    check(report())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"machine": machine_facts() | {"cpu": "another"}}, "cpu differs: before another"),
        ({"machine": machine_facts() | {"cores": 999}}, "cores differs: before 999"),
        ({"machine": machine_facts() | {"board": "Raspberry Pi 9"}}, "board differs: before Raspberry Pi 9"),
        ({"model": "other"}, "model differs: before other, now tiny"),
        ({"profile": "full"}, "profile differs: before full, now smoke"),
        ({"plan": replace(PROFILES["smoke"], rounds=9)}, "plan differs"),
        ({"scans": 3}, "number of scans differs: before 3, now 2"),
        ({"batch": 99}, "batch differs: before 99"),
        ({"server_ms": 50.0}, "limit of --server differs: before 50.0, now None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_conditions_are_refused_before_the_measurement(changes, named):
    with pytest.raises(UsageError, match=f"cannot compare: {named}"):
        check(report(**changes))


def test_engine_that_is_missing_now_is_refused():
    with pytest.raises(UsageError, match=r"model\.onnx in openvino was measured before and is not measured now"):
        check(report(row(), replace(row(), engine="openvino")))
    with pytest.raises(UsageError, match=r"in onnxruntime was measured before and is not measured now"):
        check(report(), subjects(problem="not installed"))


def test_engine_that_is_new_or_failed_before_is_not_compared():
    failed = Row("model.onnx", "openvino", "float32", 100, None, problem="not installed")
    both = report(row(), replace(row(), engine="openvino"))
    check(report(row(), failed), subjects("onnxruntime", "openvino"))
    assert {ratio.engine for ratio in compare(report(row(), failed), both, LIMIT).ratios} == {"onnxruntime"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"provider": "CUDAExecutionProvider"}, "provider of model.onnx"),
        ({"threads": 1}, "number of threads of model.onnx"),
    ],
    ids=["provider", "threads"],
)
def test_other_provider_or_threads_are_refused(changes, named):
    with pytest.raises(UsageError, match=f"cannot compare: {named} in onnxruntime differs"):
        compare(report(), report(row(**changes)), LIMIT)


def test_ratio_is_above_one_if_slower_for_times_and_for_rates():
    now = row(model=stream(2.0, 1.8, 2.2), model_rate=Spread(500, 450, 550))
    time, rate = compare(report(), report(now), LIMIT).ratios[:2]
    assert time.ratio == Spread(2.0, 1.8 / 1.1, 2.2 / 0.9)
    assert rate.ratio == Spread(2.0, 900 / 550, 1100 / 450)


@pytest.mark.parametrize(
    ("model", "verdict"),
    [
        (stream(1.0, 0.9, 1.1), "ok"),
        (stream(0.5, 0.4, 0.6), "ok"),
        (stream(1.3, 1.2, 1.4), "undecided"),  # its best round is only 1.09 times the worst round before
        (stream(1.3, 1.22, 1.4), "slower"),
    ],
)
def test_only_a_figure_with_all_rounds_above_the_limit_is_slower(model, verdict):
    assert verdicts(row(), row(model=model))["model only, SingleStream median"] == verdict


@pytest.mark.parametrize(
    "changes",
    [
        {"model": stream(3, 3, 3)},
        {"file": stream(9, 9, 9)},
        {"model_rate": Spread(100, 100, 100)},
        {"file_rate": Spread(100, 100, 100)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_each_figure_of_speed_is_judged(changes):
    comparison = compare(report(), report(row(**changes)), LIMIT)
    assert len(comparison.slower()) == 1
    with pytest.raises(GateError, match=r"times as slow as before \(\d+\.\d\d to \d+\.\d\d\), limit 1\.10"):
        comparison.require_speed()


def test_load_memory_and_energy_are_shown_and_not_judged():
    before = row(peak_mib=Spread(60, 60, 60), model_joules=Spread(1, 1, 1))
    now = row(load_ms=Spread(900, 900, 900), peak_mib=Spread(900, 900, 900), model_joules=Spread(9, 9, 9))
    comparison = compare(report(before), report(now), LIMIT)
    comparison.require_speed()
    found = {ratio.figure: ratio for ratio in comparison.ratios}
    assert found["peak memory"].ratio.value == 15
    assert {found[name].verdict for name in ("load", "peak memory", "model only, energy")} == {None}


def test_energy_of_different_sources_is_not_compared():
    joules = row(model_joules=Spread(1, 1, 1))
    comparison = compare(
        report(joules, energy_source="RAPL package-0"), report(joules, energy_source="INA3221 VDD_IN"), 1.1
    )
    assert not [ratio for ratio in comparison.ratios if "energy" in ratio.figure]
    assert comparison.changes == ("energy: measured by RAPL package-0, now by INA3221 VDD_IN",)


def test_worst_figure_is_named_first():
    now = row(model=stream(2, 2, 2), file=stream(20, 20, 20))
    with pytest.raises(GateError, match=r"model\.onnx in onnxruntime, file to answer, SingleStream.* and 1 more"):
        compare(report(), report(now), LIMIT).require_speed()


def test_artifact_that_fails_now_is_lost():
    comparison = compare(report(), report(row(problem="gone", model=None)), LIMIT)
    with pytest.raises(GateError, match="ran before and does not run now: gone"):
        comparison.require_speed()


def test_rate_that_no_longer_meets_the_bound_is_lost():
    comparison = compare(report(row(server_rate=Spread(90, 80, 99))), report(), LIMIT)
    with pytest.raises(GateError, match="Server: 90 queries/s before, none now"):
        comparison.require_speed()


def test_zero_is_refused():
    with pytest.raises(UsageError, match="not positive"):
        compare(report(row(model=stream(0, 0, 0))), report(), LIMIT)


def test_changes_name_versions_and_model():
    before = report(bundle="tiny 0 (00000000)", libraries={"onnxruntime": "1.20"})
    changes = compare(before, report(), LIMIT).changes
    assert changes == ("model: tiny 0 (00000000), now tiny 1 (12345678)", "onnxruntime: 1.20, now 1.30")


@pytest.mark.parametrize(
    ("before", "now", "hint"),
    [
        ((), (), "No disturbance was noticed"),
        (("hot",), (), "Measure both again: before, hot"),
        ((), ("busy",), "Measure both again: now, busy"),
    ],
)
def test_disturbance_of_either_measurement_is_named_with_the_failure(before, now, hint):
    slow = row(model=stream(3, 3, 3))
    with pytest.raises(GateError) as caught:
        compare(report(marks=before), report(slow, marks=now), LIMIT).require_speed()
    assert caught.value.hint == hint
