"""`mri-edge bench` runs every artifact in every engine, and the arithmetic of its report is right."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.benchmarking import benchmark, workload
from mri_edge.benchmarking.benchmark import Plan, scans_for, spread, stream
from mri_edge.benchmarking.isolated import run_isolated
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Parity
from mri_edge.cli import run
from mri_edge.errors import EngineError, UsageError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCAN = str(EXAMPLES / "phantom-1.jpg")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Two rounds with just enough queries for a median."""
    monkeypatch.setitem(benchmark.PROFILES, "smoke", Plan(rounds=2, seconds=0.01, queries=6, samples=4))


def test_every_artifact_is_measured_in_every_engine(tiny_bundle, capfd, monkeypatch):
    rounds = []
    monkeypatch.setattr(
        benchmark, "run_isolated", lambda *given, **named: rounds.append(run_isolated(*given, **named)) or rounds[-1]
    )
    assert run(["bench", str(tiny_bundle), "--scans", SCAN, "--threads", "1", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    rows = {row["engine"]: row for row in found["rows"]}
    row = rows["onnxruntime"]
    assert row["problem"] is None
    assert (row["artefact"], row["provider"], row["threads"]) == ("model.onnx", "CPUExecutionProvider", 1)
    assert row["model"]["queries"] >= 12
    assert row["model"]["bounds"]["p50"] <= row["model"]["slowest"]
    assert (row["model"]["bounds"]["p90"] is None) == (row["model"]["queries"] < 64)
    # Within a round: between two of them the machine may have become another.
    assert all(median(timing["file_ms"]) >= timing["stages_ms"]["decode"] for timing in rounds)
    assert set(row["stages_ms"]) == {"decode", "resize", "infer"}
    assert row["bound_by"] in ("decoding", "engine")
    for figure in ("load_ms", "first_ms", "model_rate", "file_rate"):
        assert 0 < row[figure]["low"] <= row[figure]["value"] <= row[figure]["high"]
    assert found["machine"]["cores"] >= 1
    assert "onnxruntime" in found["libraries"]
    assert "Not an MLPerf result" in found["notice"]
    # OpenVINO opens ONNX files, so the table has a row for it, installed or not.
    assert rows["openvino"]["problem"] is None or "pip install 'mri-edge[openvino]'" in rows["openvino"]["problem"]


def test_the_table_is_readable(tiny_bundle, capfd):
    assert run(["bench", str(tiny_bundle), "--scans", SCAN, "--engine", "onnxruntime"]) == 0
    out, err = capfd.readouterr()
    assert "model only" in out
    assert "file to answer" in out
    assert "n/a" in out
    assert "not judged" in out
    assert "Research use only" in out
    assert err == ""


def test_a_rate_under_a_bound_is_searched(tiny_bundle, capfd):
    arguments = ["--scans", SCAN, "--engine", "onnxruntime", "--threads", "1", "--server", "500", "--json"]
    assert run(["bench", str(tiny_bundle), *arguments]) == 0
    [row] = json.loads(capfd.readouterr().out)["rows"]
    assert row["server_rate"]["value"] > 0


def test_scans_may_be_many(tiny_bundle):
    """The list is longer than one program argument may be: 128 KiB on Linux."""
    request = workload.Request(
        bundle=str(tiny_bundle),
        artifact="model.onnx",
        engine="onnxruntime",
        provider="cpu",
        threads=1,
        scans=[f"{'x' * 100}-{number}.jpg" for number in range(20_000)],
        seconds=0.01,
        queries=1,
        samples=1,
        batch=1,
    )
    answer = run_isolated("benchmarking.workload:measure", request, time_limit=300)
    assert answer.startswith(f"{request.scans[0]}: no such file")


def test_a_row_contains_the_verdict_of_the_gate(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    [first] = bundle.manifest.artifacts
    with rewrite_bundle(bundle) as writer:
        writer.add_artifact(replace(first, parity=Parity("undecided", 51, 0.1, 0.01, 1)))
    report = benchmark.measure(Bundle.open(tiny_bundle), [SCAN], engine="onnxruntime")
    assert [row.parity for row in report.rows] == ["undecided"]


def test_subjects_run_in_turn(tiny_bundle, monkeypatch):
    order = []

    def answer(function, request, *, time_limit):
        order.append(request.engine)
        return "gone" if request.engine == "openvino" else dict(_READING)

    monkeypatch.setattr(benchmark, "run_isolated", answer)
    monkeypatch.setattr(benchmark, "subjects", _both)
    report = benchmark.measure(Bundle.open(tiny_bundle), [SCAN])
    # A B, A B: and what failed once is not tried again.
    assert order == ["onnxruntime", "openvino", "onnxruntime"]
    assert [row.problem for row in report.rows] == [None, "gone"]
    assert report.rows[1].model is None


def test_subjects_that_all_fail_in_a_later_round_are_an_error(tiny_bundle, monkeypatch):
    answers = iter([dict(_READING), "gone"])
    monkeypatch.setattr(benchmark, "run_isolated", lambda *_, **__: next(answers))
    with pytest.raises(EngineError, match="no artifact could run: gone"):
        benchmark.measure(Bundle.open(tiny_bundle), [SCAN], engine="onnxruntime")


@pytest.mark.parametrize(
    ("second", "marks"),
    [
        ({"model_ms": [1.4] * 12}, ["model: medians of the rounds are 1.00 to 1.40 ms"]),
        ({"file_ms": [2.8] * 12}, ["file to answer: medians of the rounds are 2.00 to 2.80 ms"]),
        ({"model_ms": [0.7] * 12, "file_ms": [1.4] * 12}, ["model: ", "file to answer: "]),
        ({"model_ms": [1.2] * 12, "file_ms": [2.4] * 12}, []),
    ],
    ids=["model", "file to answer", "both", "quiet"],
)
def test_a_disturbed_row_is_marked(tiny_bundle, monkeypatch, second, marks):
    rounds = iter(({}, second))
    monkeypatch.setattr(benchmark, "run_isolated", lambda *_, **__: {**_READING, **next(rounds)})
    [row] = benchmark.measure(Bundle.open(tiny_bundle), [SCAN], engine="onnxruntime").rows
    assert len(row.marks) == len(marks)
    assert all(mark.startswith(words) for mark, words in zip(row.marks, marks, strict=True))


@pytest.mark.parametrize(("model_rate", "bound"), [(9.0, "engine"), (1e6, "decoding")])
def test_the_slowest_stage_from_file_to_answer_is_named(tiny_bundle, monkeypatch, model_rate, bound):
    monkeypatch.setattr(benchmark, "run_isolated", lambda *_, **__: {**_READING, "model_rate": model_rate})
    [row] = benchmark.measure(Bundle.open(tiny_bundle), [SCAN], engine="onnxruntime").rows
    assert row.bound_by == bound


def test_nothing_is_trimmed():
    found = stream([[1.0] * 40, [1.0] * 39 + [900.0]])
    assert found.slowest == 900.0
    assert (found.queries, found.median.value) == (80, 1.0)
    # 80 queries support the 90th percentile, whose bound is then the slowest of them.
    assert found.bounds == {"p50": 1.0, "p90": 900.0, "p99": None}
    assert spread([3.0, 1.0, 2.0]) == benchmark.Spread(2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 3, "no such bundle folder"),
        (["--engine", "abacus"], 2, "unknown engine"),
        (["--artifact", "model.abacus"], 2, "no artifact"),
        (["--engine", "litert"], 3, "no artifact that an engine opens"),
        (["--scans", "nowhere-*.jpg"], 2, "no file matches"),
        (["--scans", "nope.jpg"], 2, "error: nope.jpg: no such file"),
        (["--scans", str(EXAMPLES / "NOTICE")], 2, "not PNG, JPEG"),
        (["--provider", "abacus"], 2, "unknown provider"),
        (["--server", "0"], 2, "--server"),
    ],
)
def test_errors_are_one_line(tiny_bundle, arguments, code, words, capfd):
    arguments = arguments if arguments[0] == "nowhere" else [str(tiny_bundle), *arguments]
    assert run(["bench", *arguments]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_changed_file_is_never_measured(tiny_bundle, capfd):
    with open(tiny_bundle / "model.onnx", "r+b") as file:
        file.seek(100)
        file.write(b"\0\1\2")
    assert run(["bench", str(tiny_bundle)]) == 3
    assert "SHA-256" in capfd.readouterr().err


def test_scans_are_those_named_or_golden(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    scans = [path for path in EXAMPLES.rglob("*") if path.suffix in (".jpg", ".dcm")]
    assert scans_for(bundle, [str(EXAMPLES)]) == sorted(map(str, scans))
    # The tiny bundle has no golden scans, so those of the embedded model are used.
    said: list[str] = []
    scans_for(bundle, [str(EXAMPLES)], said.append)
    assert len(said) == 1
    assert "NOTICE" in said[0]
    assert [Path(path).parent.name for path in scans_for(bundle, [])] == ["golden", "golden"]
    with pytest.raises(UsageError):
        scans_for(bundle, ["nowhere/*.png"])


def test_only_so_many_scans_are_held_in_memory(tiny_bundle, monkeypatch):
    monkeypatch.setattr(benchmark, "_MOST_SCANS", 3)
    said: list[str] = []
    scans = [SCAN] * 3
    assert scans_for(Bundle.open(tiny_bundle), scans, said.append) == scans
    assert said == []
    assert scans_for(Bundle.open(tiny_bundle), [*scans, "nowhere.png"], said.append) == scans
    assert said == ["only the first 3 scans are used: they stay in memory"]


@pytest.fixture
def readings(monkeypatch):
    """A list of changes to the reading of each round, in turn; without changes after its end."""
    changes: list[dict] = []
    monkeypatch.setattr(benchmark, "run_isolated", lambda *_, **__: {**_READING, **(changes.pop(0) if changes else {})})
    return changes


@pytest.fixture
def old(tiny_bundle, readings, tmp_path, capfd):
    """The output of --json, to compare with."""
    assert run(["bench", str(tiny_bundle), "--engine", "onnxruntime", "--scans", SCAN, "--json"]) == 0
    file = tmp_path / "old.json"
    file.write_text(capfd.readouterr().out, encoding="utf-8")
    return file


def compared(bundle, old, *arguments):
    return run(["bench", str(bundle), "--engine", "onnxruntime", "--scans", SCAN, "--compare", str(old), *arguments])


SLOW = {"model_ms": [1.3] * 12}


def test_same_speed_passes(tiny_bundle, old, capfd):
    assert compared(tiny_bundle, old) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "limit 1.10" in out
    assert re.search(r"model only, SingleStream median +ms +1 +1 +1\.00 +1\.00 to 1\.00 +ok", out)
    assert re.search(r"load .* not judged", out)


def test_slower_run_fails_with_exit_code_5(tiny_bundle, old, readings, capfd):
    readings += [SLOW] * 6
    assert compared(tiny_bundle, old) == 5
    out, err = capfd.readouterr()
    assert "slower" in out
    assert err.count("\n") == 1
    assert "model.onnx in onnxruntime, model only, SingleStream median: 1.30 times as slow as before" in err
    assert "limit 1.10" in err


@pytest.mark.parametrize(("limit", "code"), [("29%", 5), ("29", 5), ("31%", 0)])
def test_limit_may_be_chosen(tiny_bundle, old, readings, capfd, limit, code):
    readings += [SLOW] * 6
    assert compared(tiny_bundle, old, "--fail-above", limit) == code


def test_what_is_slower_is_measured_again_and_no_round_is_dropped(tiny_bundle, old, readings, capfd):
    readings += [SLOW] * 2 + [{}] * 2
    assert compared(tiny_bundle, old, "--json") == 0
    report = json.loads(capfd.readouterr().out)
    [row] = report["rows"]
    assert row["model"]["queries"] == 4 * 12
    [ratio] = [
        ratio for ratio in report["comparison"]["ratios"] if ratio["figure"] == "model only, SingleStream median"
    ]
    assert (ratio["artefact"], ratio["verdict"], ratio["now"]["high"]) == ("model.onnx", "undecided", 1.3)
    assert report["comparison"]["limit"] == 1.1


def test_report_and_dashboard_are_written_although_a_comparison_fails(tiny_bundle, old, readings, capfd, tmp_path):
    readings += [SLOW] * 6
    assert compared(tiny_bundle, old, "--json", "--github-action-benchmark", str(tmp_path / "dashboard.json")) == 5
    assert json.loads(capfd.readouterr().out)["comparison"]["ratios"][0]["verdict"] == "slower"
    entries = json.loads((tmp_path / "dashboard.json").read_text(encoding="utf-8"))
    assert {"name", "unit", "value", "range", "extra"} == set(entries[0])


def test_the_measurement_is_printed_although_the_dashboard_cannot_be_written(tiny_bundle, monkeypatch, capfd, tmp_path):
    """A dashboard whose folder disappears during the measurement."""
    folder = tmp_path / "gone"
    folder.mkdir()

    def reading(*_, **__):
        if folder.exists():
            folder.rmdir()
        return _READING

    monkeypatch.setattr(benchmark, "run_isolated", reading)
    command = ["bench", str(tiny_bundle), "--engine", "onnxruntime", "--scans", SCAN, "--json"]
    assert run([*command, "--github-action-benchmark", str(folder / "dashboard.json")]) == 6
    out, err = capfd.readouterr()
    assert len(json.loads(out)["rows"]) == 1
    assert "dashboard.json: cannot write" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--compare", "nowhere.json"], 2, "nowhere.json: cannot be read"),
        (["--compare", str(EXAMPLES / "NOTICE")], 2, "not valid JSON"),
        (["--fail-above", "10%"], 2, "Add --compare"),
        (["--compare", "x.json", "--fail-above", "much"], 2, "'much' is not a percentage"),
        (["--compare", "x.json", "--fail-above", "-1%"], 2, "'-1%' is not a percentage"),
        (
            ["--github-action-benchmark", "nowhere/x.json"],
            6,
            "nowhere/x.json: cannot write (No such file or directory)",
        ),
        (["--github-action-benchmark", "/proc/self/x.json"], 6, "/proc/self/x.json: cannot write"),
    ],
)
def test_errors_of_a_comparison_are_one_line_before_the_measurement(
    tiny_bundle, monkeypatch, arguments, code, words, capfd
):
    monkeypatch.setattr(benchmark, "run_isolated", None)
    assert run(["bench", str(tiny_bundle), *arguments]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


def test_other_conditions_are_refused_before_the_measurement(tiny_bundle, old, monkeypatch, capfd):
    monkeypatch.setattr(benchmark, "run_isolated", None)
    assert compared(tiny_bundle, old, "--profile", "full") == 2
    assert "cannot compare: profile differs: before smoke, now full" in capfd.readouterr().err
    text = old.read_text(encoding="utf-8")
    old.write_text(re.sub(r'"cores": \d+', '"cores": 999', text), encoding="utf-8")
    assert compared(tiny_bundle, old) == 2
    assert "cannot compare: cores differs: before 999" in capfd.readouterr().err


def test_energy_is_shown_with_its_source(tiny_bundle, readings, capfd):
    readings += [
        {"energy_source": "RAPL package-0", "model_joules": joules, "file_joules": 2 * joules}
        for joules in (0.012, 0.014)
    ]
    arguments = ["bench", str(tiny_bundle), "--engine", "onnxruntime", "--scans", SCAN]
    assert run(arguments) == 0
    out = capfd.readouterr().out
    assert "mJ: energy for a scan by RAPL package-0, with idle power" in out
    model, file = (block.splitlines()[2].split() for block in out.split("\n\n")[1:3])
    assert "13" in model
    assert file[-1] == "26"
    readings.clear()
    assert run(arguments) == 0
    assert "mJ" not in capfd.readouterr().out


def test_energy_is_measured_for_the_model_and_for_files(tiny_bundle, monkeypatch):
    class Meter:
        source = "a fake counter"

        def joules_per_query(self, run, samples):
            run(samples - 1)
            return 0.5

    monkeypatch.setattr(workload, "find_meter", Meter)
    request = workload.Request(
        bundle=str(tiny_bundle),
        artifact="model.onnx",
        engine="onnxruntime",
        provider="cpu",
        threads=1,
        scans=[SCAN],
        seconds=0.01,
        queries=1,
        samples=1,
        batch=1,
    )
    reading = workload.measure(request)
    assert (reading.energy_source, reading.model_joules, reading.file_joules) == ("a fake counter", 0.5, 0.5)


_READING = {
    "provider": "Stand-in",
    "threads": 1,
    "load_ms": 1.0,
    "first_ms": 1.0,
    "model_ms": [1.0] * 12,
    "model_rate": 9.0,
    "peak_mib": None,
    "file_ms": [2.0] * 12,
    "file_rate": 8.0,
    "stages_ms": {"decode": 1.0, "resize": 1.0, "infer": 1.0},
    "clock": None,
    "server_rate": None,
}


def _both(bundle, **_):
    [artifact] = bundle.manifest.artifacts
    return [benchmark.Subject(artifact, "onnxruntime"), benchmark.Subject(artifact, "openvino")]
