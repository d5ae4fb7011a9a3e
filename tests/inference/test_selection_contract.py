"""The rule that chooses an artifact, on both sides of its limits and down to its last choice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mri_edge import engines
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Parity
from mri_edge.device.machine import Cpu
from mri_edge.errors import EngineUnavailable
from mri_edge.inference import selection
from mri_edge.inference.selection import RunOptions, select

FAST = Cpu("x86_64", "new", frozenset({"avx2", "vnni"}))
SLOW = Cpu("aarch64", "old", frozenset({"neon"}))


@pytest.fixture(autouse=True)
def no_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("MRI_EDGE_PROFILE_DIR", str(tmp_path / "none"))


def holding(folder, *files: str, size: int = 17 << 20, verdict: str = "met") -> Bundle:
    """Return the tiny bundle with these files in its manifest; the middle of a name is its precision, else float32."""
    opened = Bundle.open(folder)
    precisions = {"int8": "int8", "fp16": "float16", "dyn": "dynamic"}
    listed = tuple(
        replace(
            opened.manifest.artifacts[0],
            file=file,
            size_bytes=size,
            precision=precisions.get(file.split(".")[1], "float32"),
            parity=Parity(verdict, 51, 0.01, 0.001, 0),
        )
        for file in files
    )
    return replace(opened, manifest=replace(opened.manifest, artifacts=listed))


@pytest.mark.parametrize(
    ("processor", "files", "chosen"),
    [
        (FAST, ("model.onnx", "model.dyn.onnx", "model.fp16.onnx", "model.int8.onnx"), "model.int8.onnx"),
        (FAST, ("model.fp16.onnx", "model.dyn.onnx", "model.onnx"), "model.onnx"),
        (FAST, ("model.fp16.onnx", "model.dyn.onnx"), "model.dyn.onnx"),
        (SLOW, ("model.int8.onnx", "model.fp16.onnx", "model.dyn.onnx", "model.onnx"), "model.onnx"),
        (SLOW, ("model.int8.onnx", "model.fp16.onnx", "model.dyn.onnx"), "model.dyn.onnx"),
        (SLOW, ("model.int8.onnx", "model.fp16.onnx"), "model.fp16.onnx"),
        (SLOW, ("model.int8.onnx",), "model.int8.onnx"),
    ],
)
def test_the_order_of_precisions(tiny_bundle, monkeypatch, processor, files, chosen):
    monkeypatch.setattr(selection, "cpu", lambda: processor)
    assert select(holding(tiny_bundle, *files)).artifact.file == chosen


def targeted(bundle: Bundle, file: str, target: str) -> Bundle:
    """Return the bundle with one artifact made for a target."""
    artifacts = tuple(
        replace(artifact, made_with={"target": target}) if artifact.file == file else artifact
        for artifact in bundle.manifest.artifacts
    )
    return replace(bundle, manifest=replace(bundle.manifest, artifacts=artifacts))


@pytest.mark.parametrize(
    ("provider", "files", "chosen"),
    [
        ("auto", ("model.int8.trt.onnx", "model.int8.onnx", "model.onnx"), "model.int8.onnx"),
        ("cpu", ("model.int8.trt.onnx", "model.onnx"), "model.onnx"),
        ("cuda", ("model.int8.trt.onnx", "model.onnx"), "model.onnx"),
        ("cpu", ("model.int8.trt.onnx", "model.tflite"), "model.tflite"),
        ("cpu", ("model.int8.trt.onnx",), "model.int8.trt.onnx"),
        ("tensorrt", ("model.int8.onnx", "model.fp16.onnx", "model.int8.trt.onnx"), "model.int8.trt.onnx"),
        ("tensorrt", ("model.int8.onnx", "model.onnx", "model.fp16.onnx"), "model.fp16.onnx"),
        ("tensorrt", ("model.int8.onnx", "model.onnx"), "model.onnx"),
    ],
)
def test_an_artifact_made_for_a_provider_runs_there_and_not_elsewhere(
    tiny_bundle, monkeypatch, provider, files, chosen
):
    monkeypatch.setattr(selection, "cpu", lambda: FAST)
    for name in ("onnxruntime", "litert"):
        monkeypatch.setattr(engines.engine_file(name), "missing", lambda: None)
    bundle = targeted(holding(tiny_bundle, *files), "model.int8.trt.onnx", "tensorrt")
    assert select(bundle, RunOptions(provider=provider)).artifact.file == chosen


@pytest.mark.parametrize("provider", ["cpu", "tensorrt"])
def test_tuning_tries_an_artifact_only_on_its_target(tiny_bundle, monkeypatch, provider):
    from mri_edge.benchmarking.tuning import candidates

    bundle = targeted(holding(tiny_bundle, "model.onnx", "model.int8.trt.onnx"), "model.int8.trt.onnx", "tensorrt")
    tried = {candidate.artifact for candidate in candidates(bundle, provider=provider)}
    assert tried == {"model.onnx", *(["model.int8.trt.onnx"] if provider == "tensorrt" else [])}


@pytest.mark.parametrize(("size", "threads", "batch"), [(1 << 20, 1, 64), ((1 << 20) + 1, None, 8)])
def test_a_network_of_one_mebibyte_is_tiny(tiny_bundle, size, threads, batch):
    chosen = select(holding(tiny_bundle, "model.onnx", size=size))
    assert (chosen.threads, chosen.batch) == (threads, batch)


@pytest.mark.parametrize("verdict", ["met", "undecided"])
def test_only_a_gate_that_was_not_met_bars_an_artifact(tiny_bundle, monkeypatch, verdict):
    monkeypatch.setattr(selection, "cpu", lambda: FAST)
    bundle = holding(tiny_bundle, "model.int8.onnx", verdict=verdict)
    assert select(bundle).artifact.file == "model.int8.onnx"


def test_without_any_engine_the_hint_names_the_first_choice(tiny_bundle, monkeypatch):
    """ONNX Runtime and LiteRT are both missing: the hint is to install the one that would have run."""
    absent = [engines.engine_file(name) for name in ("onnxruntime", "litert")]
    for module in absent:
        monkeypatch.setattr(module, "missing", lambda: "not installed")
    if "openvino" in engines.engine_files():
        monkeypatch.setattr(engines.engine_file("openvino"), "missing", lambda: "not installed")
    with pytest.raises(EngineUnavailable) as caught:
        select(holding(tiny_bundle, "model.onnx", "model.tflite"))
    assert caught.value.hint == engines.remedy(absent[0])
    assert caught.value.hint != engines.remedy(absent[1])


def test_a_device_profile_goes_stale_with_every_library_that_an_engine_runs_in(monkeypatch):
    """Every engine names the distribution of its library, so that a new version is noticed."""
    from importlib.metadata import packages_distributions

    from mri_edge.inference.tuned_profile import Profile, library_versions

    brought_by = packages_distributions()
    known = library_versions()
    checked = 0
    for module in engines.engine_files().values():
        if not module.MODULE or module.missing():
            continue
        names = brought_by[module.MODULE.split(".", maxsplit=1)[0]]
        found = [name for name in names if name in known]
        assert found, f"{module.NAME}: none of {names} is among the libraries of a profile"
        older = Profile("", str(selection.cpu()), engines.available_cpus(), {**known, found[0]: "0.0.1"}, "", ())
        assert f"{found[0]} 0.0.1 is now {known[found[0]]}" in (older.staleness() or "")
        checked += 1
    assert checked
