"""The weights of EfficientNet-Lite0 are read from PyTorch's old format without PyTorch, and folded without a change."""

import collections
import io
import pickle
import struct

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.errors import WeightsError
from mri_edge.train.models import efficientnet_weights
from mri_edge.train.models.efficientnet_lite0 import EFFICIENTNET_LITE0 as LITE0
from mri_edge.train.models.efficientnet_weights import WHEEL, folded, read_state


def _checkpoint(tensors):
    """Write arrays as ``torch.save`` before 1.6 did: each as a transposed view of its storage, protocol 2."""
    body = io.BytesIO()

    def write(*parts):
        for part in parts:
            body.write(part)

    def text(value):
        encoded = value.encode()
        return b"X" + struct.pack("<I", len(encoded)) + encoded

    def number(value):
        return b"J" + struct.pack("<i", value)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    write(pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2))
    write(b"\x80\x02", b"ccollections\nOrderedDict\n)R", b"(")
    for name, array in tensors.items():
        shape = array.shape
        strides = np.cumprod((1, *shape[:-1])).tolist()  # first axis fastest: not contiguous
        write(text(name), b"ctorch._utils\n_rebuild_tensor_v2\n", b"(")
        write(b"(", text("storage"), b"ctorch\nFloatStorage\n", text(name), text("cpu"), number(array.size + 1), b"N")
        write(b"tQ", number(1), numbers(shape), numbers(strides), b"\x89", b"ccollections\nOrderedDict\n)R", b"tR")
    write(b"u.")
    write(pickle.dumps(list(tensors), 2))
    for array in tensors.values():
        values = np.concatenate(([-1], array.ravel(order="F"))).astype("<f4")
        write(struct.pack("<q", len(values)), values.tobytes())
    return body.getvalue()


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    normalization = {
        part: rng.uniform(0.5, 2, 4).astype(np.float32) for part in ("weight", "bias", "running_mean", "running_var")
    }
    kernels = {
        "c.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "d.weight": rng.normal(size=(4, 1, 3, 3)).astype(np.float32),
    }
    return kernels | {f"n.{part}": array for part, array in normalization.items()}


def test_checkpoint_is_read_with_offsets_and_strides(tensors):
    state = read_state(io.BytesIO(_checkpoint(tensors)))
    assert list(state) == list(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(state[name], array)


def test_checkpoint_may_not_name_other_functions():
    hostile = pickle.dumps(collections.Counter(), 2)
    with pytest.raises(pickle.UnpicklingError, match=r"collections\.Counter"):
        read_state(io.BytesIO(hostile))


@pytest.mark.parametrize("depthwise", [False, True])
def test_folded_convolution_equals_convolution_and_normalization(tensors, depthwise):
    kernel, bias = folded(tensors, "d" if depthwise else "c", "n")
    layers = keras.layers
    pixels = np.random.default_rng(1).normal(size=(1, 8, 8, 4 if depthwise else 3)).astype(np.float32)
    plain = layers.DepthwiseConv2D(3, use_bias=False) if depthwise else layers.Conv2D(4, 3, use_bias=False)
    whole = layers.DepthwiseConv2D(3) if depthwise else layers.Conv2D(4, 3)
    normalization = layers.BatchNormalization(epsilon=1e-3)
    expected = normalization(plain(pixels))
    original = tensors["d.weight" if depthwise else "c.weight"]
    plain.set_weights([original.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))])
    normalization.set_weights([tensors[f"n.{part}"] for part in ("weight", "bias", "running_mean", "running_var")])
    expected = normalization(plain(pixels))
    whole.build(pixels.shape)
    whole.set_weights([kernel, bias])
    np.testing.assert_allclose(np.asarray(whole(pixels)), np.asarray(expected), atol=1e-4)


def test_another_file_is_refused_unopened(tmp_path, monkeypatch):
    file = tmp_path / WHEEL.file
    file.write_bytes(b"PK\x03\x04 other")
    monkeypatch.setattr(efficientnet_weights.zipfile, "ZipFile", None)
    with pytest.raises(WeightsError, match=r"is not the wheel of .*expected f2bc3dd05dbc"):
        LITE0.load_weights(str(file), print)
    with pytest.raises(WeightsError, match=r"imagenet: no such weights file.*takes auto, or the path of"):
        LITE0.load_weights("imagenet", print)


def test_backbone_is_what_the_registry_says():
    backbone = LITE0.build(None, 64, 96)
    assert backbone.output_shape == (None, 2, 3, LITE0.feature_channels)
    layers = [layer.name for layer in backbone.layers if layer.weights]
    assert [sum(name.startswith(stage) for name in layers) for stage in LITE0.stages] == [1, 2, 6, 6, 9, 9, 12, 1]
    assert len(layers) == 46
    features = np.asarray(backbone(np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)))
    assert features.min() >= 0, "out-of-distribution detection takes the root of the features"


def test_color_is_ignored():
    backbone = LITE0.build(None, 64, 64)
    gray = np.repeat(np.random.default_rng(0).normal(size=(1, 64, 64, 1)).astype(np.float32), 3, axis=3)
    before = np.asarray(backbone(gray))
    LITE0.ignore_color(backbone, LITE0.preprocessing)
    np.testing.assert_allclose(np.asarray(backbone(gray)), before, atol=1e-5)
    tinted = gray + np.array([0.4, -0.6, 0.2], np.float32)
    np.testing.assert_allclose(np.asarray(backbone(tinted)), before, atol=1e-4)


@pytest.mark.slow
def test_published_weights_are_those_of_the_package():
    """Download 17 MB from the package index unless they are in the user's cache."""
    received = LITE0.load_weights("auto", print)
    assert received.licence == "Apache-2.0"
    assert len(received.arrays) == 46
    backbone = LITE0.build(received, 64, 64)
    assert [array.shape for array in received.arrays[0]] == [(3, 3, 3, 32), (32,)]
    assert backbone.count_params() == 2_558_640
