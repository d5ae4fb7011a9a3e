"""A model opens in the background: its result, and which of two errors is reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mri_edge import Classifier, EngineError, IntegrityError
from mri_edge.bundles.bundle import Bundle
from mri_edge.device.cpu import available_cpus
from mri_edge.device.machine import cpu
from mri_edge.inference.loading import PendingModel
from mri_edge.inference.tuned_profile import Measurement, Profile, fingerprint_of, library_versions


def test_opening_in_the_background_gives_the_results_of_load(tiny_bundle: Path) -> None:
    with (
        Classifier.from_pending(PendingModel(Bundle.open(tiny_bundle))) as opened,
        Classifier.load(tiny_bundle) as loaded,
    ):
        assert opened.artifact == loaded.artifact
        assert opened.engine.provider == loaded.engine.provider


def _damage(bundle: Path, content: bytes) -> None:
    model = bundle / "model.onnx"
    model.write_bytes(content.ljust(model.stat().st_size, b"\0")[: model.stat().st_size])


def test_a_changed_file_is_reported_before_any_error_of_the_engine(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    _damage(tiny_bundle, b"no model")
    with pytest.raises(IntegrityError, match="SHA-256"):
        PendingModel(bundle).wait()


def test_a_changed_file_is_passed_to_no_engine(tiny_bundle: Path, monkeypatch) -> None:
    bundle = Bundle.open(tiny_bundle)
    handed: list[object] = []
    monkeypatch.setattr("mri_edge.inference.loading.open_engine", lambda model, **options: handed.append(model))
    other = tuple(replace(artifact, sha256="0" * 64) for artifact in bundle.manifest.artifacts)
    bundle = replace(bundle, manifest=replace(bundle.manifest, artifacts=other))
    with pytest.raises(IntegrityError, match="SHA-256"):
        PendingModel(bundle).wait()
    assert handed == []


def test_a_profile_of_another_provider_than_the_started_one_is_ignored(
    tiny_bundle: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    """A profile tuned on a GPU does not apply once the GPU's driver is gone."""
    monkeypatch.setenv("MRI_EDGE_PROFILE_DIR", str(tmp_path))
    bundle = Bundle.open(tiny_bundle)
    measured = Measurement("model.onnx", "onnxruntime", "auto", "CUDAExecutionProvider", 1, 5, 1.0, 3)
    profile = Profile(fingerprint_of(bundle), str(cpu()), available_cpus(), library_versions(), "", (measured,))
    profile.save()
    opened = PendingModel(bundle).wait()
    opened.engine.close()
    assert opened.batch_size != 5
    assert "made on CUDAExecutionProvider but CPUExecutionProvider started" in caplog.text
    caplog.clear()
    replace(profile, measurements=(replace(measured, ran="CPUExecutionProvider"),)).save()
    opened = PendingModel(bundle).wait()
    opened.engine.close()
    assert opened.batch_size == 5
    assert caplog.text == ""


def test_wait_raises_the_error_of_an_engine_that_failed(tiny_bundle: Path, monkeypatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise EngineError("no luck")

    monkeypatch.setattr("mri_edge.inference.loading.open_engine", fail)
    opening = PendingModel(Bundle.open(tiny_bundle))
    with pytest.raises(EngineError, match="no luck"):
        opening.wait()
