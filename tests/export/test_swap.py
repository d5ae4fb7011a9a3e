"""Export converts the model that it checked and hashed, even if the file is replaced during the export."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest

from mri_edge.bundles.bundle import Bundle
from mri_edge.engines import open_engine


@pytest.fixture
def evil(model, tmp_path):
    """The tiny model with its last weights negated, as a file of the same size and as a SavedModel."""
    weights = model.get_weights()
    model.set_weights([*weights[:-2], *(-values for values in weights[-2:])])
    model.save(tmp_path / "evil.keras")
    model.export(tmp_path / "evil", verbose=False)
    model.set_weights(weights)
    return tmp_path / "evil"


def swap_before(monkeypatch, module, name, path, evil):
    """Replace ``path`` by the evil model immediately before ``module`` opens it with the function ``name``."""
    open_model = getattr(module, name)

    def swap_and_open(*arguments, **options):
        if path.is_dir():
            shutil.rmtree(path)
            shutil.copytree(evil, path)
        else:
            shutil.copyfile(evil.with_suffix(".keras"), path)
        return open_model(*arguments, **options)

    monkeypatch.setattr(module, name, swap_and_open)


def assert_exported(folder, model, preprocessing):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    engine = open_engine(folder / "model.onnx", provider="cpu")
    answer = engine.run(pixels)
    engine.close()
    assert np.abs(answer - np.asarray(model(preprocessing.normalize(pixels), training=False))).max() < 1e-5


def test_model_of_a_bundle_replaced_after_the_hash_check(bundle, model, pictures, evil, monkeypatch):
    from mri_edge.export import exporter
    from mri_edge.export.exporter import Settings

    assert evil.with_suffix(".keras").stat().st_size == (bundle / "model.keras").stat().st_size
    swap_before(monkeypatch, exporter, "load", bundle / "model.keras", evil)
    exporter.export(Bundle.open(bundle), Settings(("onnx",), pictures))
    assert_exported(bundle, model, Bundle.open(bundle).manifest.preprocessing)


@pytest.mark.parametrize("kind", ["file", "SavedModel"])
def test_external_model_replaced_while_it_is_opened(kind, trained, model, pictures, evil, tmp_path, monkeypatch):
    from mri_edge.export.exporter import Settings
    from mri_edge.export.options import ModelDescription
    from mri_edge.export.sources import external_model

    preprocessing, out = Bundle.open(trained).manifest.preprocessing, tmp_path / "out"
    if kind == "file":
        path = shutil.copyfile(trained / "model.keras", tmp_path / "good.keras")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        swap_before(monkeypatch, external_model, "load", path, evil)
    else:
        path = tmp_path / "good"
        model.export(path, verbose=False)
        swap_before(monkeypatch, external_model, "load_saved_model", path, evil)
    description = ModelDescription(out, pictures, {"no": ["no"], "yes": ["yes"]}, 1, preprocessing)
    external_model.export_external(path, description, Settings(("onnx",), pictures))
    assert_exported(out, model, preprocessing)
    if kind == "file":
        assert hashlib.sha256((out / "model.keras").read_bytes()).hexdigest() == digest
        assert json.loads((out / "parity.json").read_text())["reference"]["sha256"] == digest
