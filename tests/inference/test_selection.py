"""Artifact and engine are chosen by name, device profile or rule; an outdated profile is ignored."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

from mri_edge import Classifier
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Parity
from mri_edge.device.cpu import available_cpus
from mri_edge.device.machine import Cpu, cpu
from mri_edge.engines import engine_file, engine_files, offered
from mri_edge.errors import BundleError, EngineUnavailable, ManifestError, UsageError
from mri_edge.inference import selection, tuned_profile
from mri_edge.inference.selection import RunOptions, select
from mri_edge.inference.tuned_profile import Measurement, Profile, fingerprint_of, library_versions, load_profile

VNNI = Cpu("x86_64", "new", frozenset({"avx2", "vnni"}))
DOTPROD = Cpu("aarch64", "new", frozenset({"neon", "dotprod"}))
AVX2 = Cpu("x86_64", "older", frozenset({"avx2"}))
PLAIN = Cpu("aarch64", "old", frozenset({"neon"}))
MET = Parity("met", 51, 0.01, 0.001, 0)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the profiles of one test only."""
    monkeypatch.setenv("MRI_EDGE_PROFILE_DIR", str(tmp_path / "profiles"))
    return tmp_path / "profiles"


@pytest.fixture
def bundle(tiny_bundle) -> Bundle:
    """A bundle that lists float32, int8 and float16 ONNX files and a TFLite file; all met their gate."""
    opened = Bundle.open(tiny_bundle)
    [first] = opened.manifest.artifacts
    kinds = [("model.onnx", "float32"), ("model.fp16.onnx", "float16"), ("model.int8.onnx", "int8")]
    kinds += [("model.tflite", "float32"), ("model.int8.tflite", "int8")]
    listed = tuple(replace(first, file=file, precision=precision, parity=MET) for file, precision in kinds)
    return replace(opened, manifest=replace(opened.manifest, artifacts=listed))


def failing(bundle: Bundle, file: str) -> Bundle:
    """The same bundle, where one artifact did not meet its gate."""
    listed = tuple(
        replace(artifact, parity=replace(MET, verdict="not met")) if artifact.file == file else artifact
        for artifact in bundle.manifest.artifacts
    )
    return replace(bundle, manifest=replace(bundle.manifest, artifacts=listed))


def measurement(artifact="model.onnx", engine="onnxruntime", threads=1, batch=1, ms=10.0, provider="auto"):
    return Measurement(artifact, engine, provider, "CPUExecutionProvider", threads, batch, ms, 100)


def save(bundle: Bundle, *measurements: Measurement, **changes) -> Profile:
    made = Profile(
        bundle=fingerprint_of(bundle),
        cpu=str(cpu()),
        cores=available_cpus(),
        libraries=library_versions(),
        created="2026-01-01T00:00:00+00:00",
        measurements=measurements,
    )
    made = replace(made, **changes)
    made.save()
    return made


@pytest.mark.parametrize("name", offered())
def test_profile_is_stale_once_an_engines_library_is_another(bundle, caplog, monkeypatch, name):
    """The name comes from importlib.metadata, because a change of an undeclared package would go unnoticed."""
    if reason := engine_file(name).missing():
        pytest.skip(reason)
    top = engine_file(name).MODULE.partition(".")[0]
    [package, *_] = [package.lower().replace("_", "-") for package in packages_distributions()[top]]
    save(bundle, measurement(threads=1), libraries=library_versions() | {package: "0.0.1"})
    assert select(bundle).reason != "by the device profile"
    assert f"{package} 0.0.1 is now {version(package)}" in caplog.text


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (VNNI, "model.int8.onnx"),
        (DOTPROD, "model.int8.onnx"),
        (AVX2, "model.int8.onnx"),
        (PLAIN, "model.onnx"),
    ],
    ids=lambda value: getattr(value, "model", value),
)
def test_rule_takes_int8_where_the_cpu_multiplies_it_fast(bundle, monkeypatch, processor, expected):
    monkeypatch.setattr(selection, "cpu", lambda: processor)
    chosen = select(bundle)
    assert (chosen.artifact.file, chosen.engine) == (expected, "onnxruntime")


def test_a_tiny_network_runs_on_one_thread_in_large_batches(bundle):
    [large] = [
        replace(artifact, size_bytes=17 << 20)
        for artifact in bundle.manifest.artifacts
        if artifact.file == "model.onnx"
    ]
    for chosen, threads, batch in (
        (select(bundle), 1, 64),
        (select(bundle, RunOptions(threads=3)), 3, 64),
        (select(replace(bundle, manifest=replace(bundle.manifest, artifacts=(large,)))), None, 8),
    ):
        assert (chosen.threads, chosen.batch) == (threads, batch)


@pytest.mark.parametrize("threads", [-1, 0])
@pytest.mark.parametrize("tiny", [selection.TINY, 0], ids=["a tiny network", "a larger one"])
def test_fewer_threads_than_one_are_refused(tiny_bundle, monkeypatch, tiny, threads):
    monkeypatch.setattr(selection, "TINY", tiny)
    with pytest.raises(UsageError, match=f"threads must be at least 1. Received: {threads}"):
        Classifier.load(tiny_bundle, threads=threads)


def test_rule_passes_over_an_artifact_that_failed_its_gate(bundle, monkeypatch):
    monkeypatch.setattr(selection, "cpu", lambda: VNNI)
    assert select(failing(bundle, "model.int8.onnx")).artifact.file == "model.onnx"


def test_a_named_artifact_runs_even_if_its_gate_was_not_met(bundle):
    assert select(failing(bundle, "model.int8.onnx"), RunOptions("int8.onnx")).artifact.file == "model.int8.onnx"


@pytest.mark.parametrize(
    ("processor", "expected"),
    [(VNNI, "model.int8.tflite"), (AVX2, "model.tflite"), (PLAIN, "model.tflite")],
    ids=lambda value: getattr(value, "model", value),
)
def test_rule_within_a_named_engine(bundle, monkeypatch, processor, expected):
    monkeypatch.setattr(selection, "cpu", lambda: processor)
    assert select(bundle, RunOptions(engine="litert")).artifact.file == expected


def test_wrong_names_and_empty_bundles(bundle, monkeypatch):
    with pytest.raises(UsageError, match="unknown engine"):
        select(bundle, RunOptions(engine="caffe"))
    with pytest.raises(UsageError, match="It has: "):
        select(bundle, RunOptions("model.int4.onnx"))
    with pytest.raises(UsageError, match="unknown provider 'CPU'"):
        RunOptions(provider="CPU")
    with pytest.raises(UsageError, match=r"a workload must be single or many. Received: 'one'"):
        RunOptions(workload="one")
    empty = replace(bundle, manifest=replace(bundle.manifest, artifacts=()))
    with pytest.raises(BundleError, match="no model"):
        select(empty)
    with pytest.raises(BundleError, match="fake"):
        select(bundle, RunOptions(engine="fake"))


def test_no_engine_installed_lists_every_reason(bundle, monkeypatch):
    for module in engine_files().values():
        monkeypatch.setattr(module, "missing", lambda: "it is not installed")
    with pytest.raises(EngineUnavailable, match="onnxruntime: it is not installed; litert: "):
        select(bundle)


def test_profile_decides_and_knows_single_scans_from_many(bundle):
    save(
        bundle,
        measurement("model.tflite", "litert", threads=2, batch=1, ms=5),
        measurement("model.int8.onnx", "onnxruntime", threads=1, batch=1, ms=6),
        measurement("model.int8.onnx", "onnxruntime", threads=2, batch=8, ms=24),
    )
    single, many = select(bundle, RunOptions(workload="single")), select(bundle, RunOptions(workload="many"))
    assert (single.artifact.file, single.engine, single.threads, single.batch) == ("model.tflite", "litert", 2, 1)
    assert (many.artifact.file, many.engine, many.threads, many.batch) == ("model.int8.onnx", "onnxruntime", 2, 8)


def test_a_profile_is_searched_within_the_given_options(bundle):
    save(
        bundle,
        measurement("model.tflite", "litert", threads=2, ms=5),
        measurement("model.onnx", "onnxruntime", threads=1, ms=9),
        measurement("model.int8.onnx", "onnxruntime", threads=2, ms=7),
    )
    assert select(bundle, RunOptions(engine="onnxruntime")).artifact.file == "model.int8.onnx"
    assert select(bundle, RunOptions("model.onnx")).threads == 1
    assert select(bundle, RunOptions(threads=1)).artifact.file == "model.onnx"
    # Nothing was measured with 7 threads or on CUDA: the rule decides, and keeps what was asked for.
    assert select(bundle, RunOptions(threads=7)).threads == 7
    assert "rule" in select(bundle, RunOptions(provider="cuda")).reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cpu": "Another CPU (x86_64): avx2"}, "another CPU"),
        ({"cores": 4096}, "4096 cores"),
        ({"libraries": {}}, "mri-edge not installed is now"),
        ({"libraries": {"onnxruntime": "0.1"}}, "onnxruntime 0.1 is now"),
    ],
)
def test_stale_profile_is_ignored_with_a_warning(bundle, caplog, monkeypatch, changes, words):
    monkeypatch.setattr(selection, "cpu", lambda: PLAIN)
    save(bundle, measurement("model.tflite", "litert", ms=1), **changes)
    with caplog.at_level(logging.WARNING, "mri_edge"):
        assert select(bundle).artifact.file == "model.onnx"
    [record] = caplog.records
    assert words in record.getMessage()
    assert "mri-edge tune" in record.getMessage()


def test_a_valid_profile_is_used_without_a_message(bundle, caplog):
    save(bundle, measurement())
    with caplog.at_level(logging.WARNING, "mri_edge"):
        assert select(bundle).reason == "by the device profile"
    assert caplog.records == []


def test_profiles_of_several_providers_are_kept(bundle):
    save(bundle, measurement("model.onnx", threads=1, ms=5))
    save(bundle, measurement("model.int8.onnx", threads=2, ms=6, provider="cpu"))
    save(bundle, measurement("model.int8.onnx", threads=1, ms=4, provider="cpu"))
    assert (select(bundle).artifact.file, select(bundle).threads) == ("model.onnx", 1)
    assert (
        select(bundle, RunOptions(provider="cpu")).artifact.file,
        select(bundle, RunOptions(provider="cpu")).threads,
    ) == (
        "model.int8.onnx",
        1,
    )
    # A new measurement removes the outdated ones.
    save(bundle, measurement("model.onnx", ms=5), libraries={})
    save(bundle, measurement("model.onnx", ms=5, provider="cpu"))
    assert "rule" in select(bundle).reason


def test_a_profile_of_another_model_is_not_used(bundle):
    save(bundle, measurement("model.tflite", "litert", ms=1))
    [first, *others] = bundle.manifest.artifacts
    changed = replace(bundle, manifest=replace(bundle.manifest, artifacts=(replace(first, sha256="0" * 64), *others)))
    assert load_profile(bundle) is not None
    assert load_profile(changed) is None
    # A verdict counts like a hash: what failed its gate since must not run.
    assert load_profile(failing(bundle, "model.tflite")) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"bundle": 1}',
        json.dumps({"bundle": "", "cpu": "", "cores": 1, "libraries": {}, "created": "", "measurements": [{}]}),
    ],
)
def test_broken_profile_is_ignored_with_a_warning(bundle, folder, caplog, text):
    folder.mkdir()
    (folder / f"{fingerprint_of(bundle)[:32]}.json").write_text(text)
    with pytest.raises(ManifestError):
        load_profile(bundle)
    with caplog.at_level(logging.WARNING, "mri_edge"):
        assert "rule" in select(bundle).reason
    assert "device profile ignored" in caplog.text


def test_impossible_measurements_are_refused(bundle):
    save(bundle, measurement(batch=0))
    with pytest.raises(ManifestError, match="impossible"):
        load_profile(bundle)


def test_profile_survives_being_written_and_read(bundle):
    made = save(bundle, measurement(), measurement(batch=4))
    assert load_profile(bundle) == made


def test_profile_costs_no_metadata_scan():
    """`predict` reads the profile at every start, so that must import neither importlib.metadata nor anything heavy."""
    import subprocess
    import sys

    code = """
import sys
import mri_edge.inference.classifier
before = set(sys.modules)
import mri_edge.inference.tuned_profile
mri_edge.inference.tuned_profile.library_versions()
print(sorted(name for name in set(sys.modules) - before if not name.startswith("mri_edge")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert tuned_profile.__name__ == "mri_edge.inference.tuned_profile"
