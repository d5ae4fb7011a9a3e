"""OpenVINO IR: the archive holds what OpenVINO's own API reads, and equal models give equal files."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from mri_edge.export.calibration.calibrator import Calibrator
from mri_edge.export.calibration.images import pictures_in, record
from mri_edge.export.formats import Conversion, find_format
from mri_edge.export.sources.device_graph import device_graph
from mri_edge.scans.preprocessing import Preprocessing

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def conversion(model, pictures) -> Conversion:
    preprocessing = Preprocessing(32, 32)
    files = tuple(path for path, _ in pictures_in(pictures))[::4]
    return Conversion(
        device_graph(model, preprocessing), 1, Calibrator(files, preprocessing, record(files, "minmax", 0))
    )


@pytest.mark.parametrize("name", ["openvino", "openvino-int8"])
def test_equal_models_give_equal_files(name, conversion):
    convert = find_format(name).convert
    assert convert(conversion)[0] == convert(conversion)[0]


@pytest.mark.parametrize("name", ["openvino", "openvino-int8"])
def test_unpacked_archive_is_run_by_openvino_alone(name, conversion, tmp_path):
    """With its default settings, which compute in bfloat16 on CPUs that can."""
    with zipfile.ZipFile(io.BytesIO(find_format(name).convert(conversion)[0])) as archive:
        archive.extractall(tmp_path)
    compiled = openvino.Core().compile_model(tmp_path / "model.xml", "CPU")
    answer = compiled(np.zeros((1, 32, 32, 3), np.uint8))["probabilities"]
    assert answer.shape == (1, 2)
    assert answer.sum() == pytest.approx(1, abs=1e-2)


def test_int8_weights_stay_int8(conversion):
    sizes = {name: len(find_format(name).convert(conversion)[0]) for name in ("openvino", "openvino-int8")}
    with zipfile.ZipFile(io.BytesIO(find_format("openvino-int8").convert(conversion)[0])) as archive:
        weights = archive.getinfo("model.bin").file_size
    assert weights < 0.4 * sizes["openvino"]
