"""`mri-edge tune` writes a profile, `predict` uses it, and `mri-edge warmup` prepares a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.benchmarking import tuning
from mri_edge.benchmarking.trial import Outcome, Trial, attempt
from mri_edge.benchmarking.tuning import thread_counts, tune
from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.device.cpu import available_cpus
from mri_edge.errors import EngineError

SCAN = str(Path(__file__).resolve().parents[2] / "examples" / "phantom-1.jpg")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MRI_EDGE_PROFILE_DIR", str(tmp_path / "profiles"))
    return tmp_path / "profiles"


class Bench:
    """A fake for the measuring processes: it answers from a table of milliseconds and records each trial."""

    def __init__(self, ms) -> None:
        self.tried: list[Trial] = []
        self._ms = ms

    def __call__(self, trial: Trial, *, time_limit: float) -> Outcome:
        assert time_limit > trial.seconds + 60
        self.tried.append(trial)
        answer = self._ms(trial, sum(earlier == trial for earlier in self.tried))
        return (
            Outcome(answer) if isinstance(answer, str) else Outcome(None, "Stand-in", trial.threads or 0, 1, answer, 9)
        )


@pytest.fixture
def bench(monkeypatch):
    def put(ms) -> Bench:
        made = Bench(ms)
        monkeypatch.setattr(tuning, "attempt", made)
        monkeypatch.setattr(tuning, "available_cpus", lambda: 4)
        return made

    return put


@pytest.mark.parametrize(("cores", "expected"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_threads_that_are_tried(cores, expected):
    assert thread_counts(cores) == expected


def test_the_fastest_is_chosen_for_one_scan_and_for_many(tiny_bundle, bench):
    bench(lambda trial, again: 10 / trial.threads if trial.batch == 1 else 3.0 * trial.batch / trial.threads)
    found = tune(Bundle.open(tiny_bundle)).profile
    assert (found.best(many=False).threads, found.best(many=False).ms) == (4, 2.5)
    assert found.best(many=True).batch > 1
    assert found.best(many=True).ms_per_scan == 0.75


def test_long_measurements_are_not_cut_off(tiny_bundle, bench):
    """The fake asserts that each process gets more time than its measurement takes."""
    tried = bench(lambda trial, again: 5.0).tried
    tune(Bundle.open(tiny_bundle), seconds=1000, batches=(1,))
    assert {trial.seconds for trial in tried} == {1000}


def test_a_single_fast_measurement_does_not_decide(tiny_bundle, bench):
    """A candidate that is fast once and slow when it runs again loses to one that is steady."""

    def ms(trial: Trial, again: int) -> float:
        if (trial.engine, trial.threads) == ("onnxruntime", 1):
            return 1.0 if again == 1 else 9.0
        return 5.0 * trial.batch

    bench(ms)
    best = tune(Bundle.open(tiny_bundle), batches=(1,)).profile.best(many=False)
    assert best.ms == 5.0


def test_whoever_wins_was_measured_three_times(tiny_bundle, bench):
    made = bench(lambda trial, again: 1.0 if again == 1 else 50.0)
    found = tune(Bundle.open(tiny_bundle), batches=(1,)).profile.best(many=False)
    tried = [trial for trial in made.tried if (trial.engine, trial.threads) == (found.engine, found.threads)]
    assert len(tried) >= 3


def test_hopeless_candidates_are_not_tried_on_many(tiny_bundle, bench):
    made = bench(lambda trial, again: 100.0 * trial.batch if trial.threads == 1 else 2.0 * trial.batch)
    tune(Bundle.open(tiny_bundle))
    assert {trial.batch for trial in made.tried if trial.threads == 1} == {1}
    assert {trial.batch for trial in made.tried if trial.threads == 4} == {1, 4, 8}


def test_a_candidate_that_dies_is_reported_and_the_others_run(tiny_bundle, bench):
    bench(lambda trial, again: "illegal instruction" if trial.threads == 2 else 3.0)
    found = tune(Bundle.open(tiny_bundle), batches=(1,))
    assert {trial.threads for trial, _ in found.failed} == {2}
    assert 2 not in {measurement.threads for measurement in found.profile.measurements}


def test_a_leader_that_dies_later_is_out(tiny_bundle, bench):
    bench(
        lambda trial, again: (
            1.0 * trial.batch if trial.threads == 4 and again == 1 else "gone" if trial.threads == 4 else 3.0
        )
    )
    best = tune(Bundle.open(tiny_bundle), batches=(1,)).profile.best(many=False)
    assert best.threads != 4


@pytest.mark.parametrize("marks", [("other programs kept 1.5 of 2 cores busy",), ()], ids=["disturbed", "quiet"])
def test_a_disturbance_of_the_machine_is_reported(tiny_bundle, bench, monkeypatch, caplog, marks):
    bench(lambda trial, again: 1.0)
    monkeypatch.setattr(tuning, "Watch", lambda: SimpleNamespace(marks=lambda: marks))
    tune(Bundle.open(tiny_bundle), batches=(1,))
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == list(marks)


def test_nothing_that_runs_is_an_error(tiny_bundle, bench):
    bench(lambda trial, again: "no such thing")
    with pytest.raises(EngineError, match="no such thing"):
        tune(Bundle.open(tiny_bundle))


def test_artifacts_that_failed_their_gate_are_not_measured(tiny_bundle, bench):
    from dataclasses import replace

    from mri_edge.bundles.manifest import Parity

    bundle = Bundle.open(tiny_bundle)
    [first] = bundle.manifest.artifacts
    worse = replace(first, file="model.int8.onnx", precision="int8", parity=Parity("not met", 51, 0.5, 0.2, 9))
    with rewrite_bundle(bundle) as writer:
        writer.path(worse.file).write_bytes((tiny_bundle / "model.onnx").read_bytes())
        writer.add_artifact(worse)
    made = bench(lambda trial, again: 1.0)
    tune(Bundle.open(tiny_bundle))
    assert {trial.artifact for trial in made.tried} == {"model.onnx"}


def test_a_trial_measures_in_a_process_of_its_own(tiny_bundle):
    outcome = attempt(
        Trial("onnxruntime", str(tiny_bundle), "model.onnx", threads=1, batch=4, seconds=0.05), time_limit=60
    )
    assert outcome.problem is None
    assert (outcome.provider, outcome.threads) == ("CPUExecutionProvider", 1)
    assert outcome.runs >= 3
    assert outcome.ms > 0


def test_tuned_for_real_and_used_by_predict(tiny_bundle, capfd, folder):
    assert run(["tune", "--model", str(tiny_bundle), "--seconds", "0.02", "--batch", "1", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert list(folder.iterdir()) == [Path(found["profile"])]
    assert found["cores"] == available_cpus()
    assert found["failed"] == []
    best = found["single"]
    assert best["ms"] == min(measurement["ms"] for measurement in found["measurements"])
    assert run(["predict", "-v", "--json", "--model", str(tiny_bundle), SCAN]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert (result["engine"], result["tuned"]) == (best["engine"], True)
    assert "by the device profile" in err
    assert f"threads {best['threads']}" in err
    # In silence unless asked.
    assert run(["predict", "--json", "--model", str(tiny_bundle), SCAN]) == 0
    assert capfd.readouterr().err == ""


def test_the_gain_over_the_default_is_shown(tiny_bundle, capfd, bench):
    """The default is measured as often as the fastest: once, and twice with the leaders."""

    def ms(trial, again):
        return (4.0 if (trial.artifact, trial.threads) == ("model.onnx", 1) else 2.0) * trial.batch

    made = bench(ms)
    assert run(["tune", "--model", str(tiny_bundle)]) == 0
    out = capfd.readouterr().out
    how = "model.onnx in onnxruntime, threads 1, batch"
    assert f"2.00 times as fast as without a profile ({how} 1)" in out
    assert f"2.00 times as fast as without a profile ({how} 64)" in out
    default = [trial for trial in made.tried if (trial.artifact, trial.threads, trial.batch) == ("model.onnx", 1, 64)]
    assert len(default) >= 3
    assert run(["predict", "--json", "--model", str(tiny_bundle), SCAN]) == 0
    assert "tuned" not in json.loads(capfd.readouterr().out)  # the profile was made with 4 cores and fake results


@pytest.mark.parametrize("kind", ["a file in its place", "a folder that takes no file"])
def test_an_unwritable_profile_is_reported_before_anything_is_measured(
    tiny_bundle, bench, folder, capfd, monkeypatch, kind
):
    made = bench(lambda trial, again: 1.0)
    if kind == "a file in its place":
        folder.touch()
    elif Path("/proc/self/fd").is_dir():
        monkeypatch.setenv("MRI_EDGE_PROFILE_DIR", "/proc/self")
    else:
        pytest.skip("no folder here that takes no file of any user")
    assert run(["tune", "--model", str(tiny_bundle)]) == 6
    err = capfd.readouterr().err
    assert "MRI_EDGE_PROFILE_DIR" in err
    assert len(err.splitlines()) == 1
    assert made.tried == []


@pytest.mark.parametrize("home", ["a file", "none"])
def test_an_unwritable_home_is_reported_with_a_hint(tiny_bundle, bench, tmp_path, capfd, monkeypatch, home):
    made = bench(lambda trial, again: 1.0)
    for variable in ("MRI_EDGE_PROFILE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    if home == "none":  # a number without an account, as containers have it
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
    else:
        (tmp_path / "home").touch()
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run(["tune", "--model", str(tiny_bundle)]) == (2 if home == "none" else 6)
    err = capfd.readouterr().err
    assert "MRI_EDGE_PROFILE_DIR" in err
    assert len(err.splitlines()) == 1
    assert made.tried == []
    assert run(["predict", "--model", str(tiny_bundle), SCAN]) == 0  # which needs no profile


def test_progress_is_logged(tiny_bundle, bench, capfd):
    made = bench(lambda trial, again: 1.0)
    assert run(["tune", "--model", str(tiny_bundle), "--batch", "1"]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if " of " in line and ": model.onnx in " in line]
    measured = [line for line in lines if ": measure, " in line]
    first = f"model.onnx in {made.tried[0].engine}, threads 1, batch 1"
    assert measured[0] == f"mri-edge: measure, 1 of {len(measured)}: {first}"
    assert len(lines) == len(made.tried)


def test_predict_warns_of_a_stale_profile_and_continues(tiny_bundle, capfd, bench, monkeypatch):
    bench(lambda trial, again: 1.0)
    assert run(["tune", "--model", str(tiny_bundle)]) == 0
    out = capfd.readouterr().out
    assert "single scan: model.onnx in " in out
    # The fake reported 4 cores; make sure that this machine has another number.
    monkeypatch.setattr("mri_edge.inference.tuned_profile.available_cpus", lambda: 3)
    assert run(["predict", "--json", "--model", str(tiny_bundle), SCAN]) == 0
    out, err = capfd.readouterr()
    assert "warning: device profile ignored, it was made with 4 cores, and 3 may be used now" in err
    assert len(err.splitlines()) == 1
    assert json.loads(out)["label"] in ("yes", "no")


def test_warmup_prints_the_duration_of_each_step(tiny_bundle, capfd):
    assert run(["warmup", "--model", str(tiny_bundle), "--batch", "2"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["open", "first run, batch 2", "next run, batch 2"]
    assert all(line.endswith(" ms") for line in lines)


def test_warmup_of_a_provider_that_is_not_there_is_an_error(tiny_bundle, capfd):
    import onnxruntime

    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has TensorRT, which may start")
    assert run(["warmup", "--model", str(tiny_bundle), "--provider", "tensorrt"]) == 4
    assert "TensorrtExecutionProvider" in capfd.readouterr().err
