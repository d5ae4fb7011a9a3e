"""Open a Keras model of unknown origin: check a private copy, rebuild its description, load its arrays.

Keras never sees the original file or description. It gets a description in which every class is known, and a file of
arrays of limited total size. The caller passes the Keras module, because this package does not import it.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import BundleError, OutputError, first_line, printable
from mri_edge.storage.lfs import HINT, is_lfs_pointer

from .containers import UnsafeModelError, check_hdf5, unpack, unpacked_limit
from .description import check_description
from .keras2 import to_keras3

ARCHIVE, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
_LARGEST_DESCRIPTION = 16 << 20  # bytes
_LARGEST_OUTPUT = 1 << 26  # values of one layer's output for one picture: VGG16 has so many at 1024 x 1024
_HEAD = 512  # bytes that identify the kind of a file
_CONTAINERS = ("Functional", "Model", "Sequential")


def open_model(path: Path, keras: Any, content: bytes | None = None) -> Any:
    """Open a ``.keras`` or ``.h5`` file, whatever its suffix, as a Keras model that is not compiled.

    Parameters
    ----------
    path
        The file. With ``content`` it is only used in messages.
    keras
        The imported module, version 3.
    content
        The bytes of the file, if the caller has read them to check their hash.

    Raises
    ------
    BundleError
        Not a Keras model, damaged, or it contains code, refers to other files, or unpacks to too much.
    OutputError
        The temporary folder is too small for the copy, or cannot be written.
    """
    kind = check_kind(path) if content is None else _kind_of(content[:_HEAD], path)
    with tempfile.TemporaryDirectory(prefix="mri-edge-model-") as name:
        folder = Path(name)
        try:
            copy = folder / "model"
            if content is None:
                shutil.copyfile(path, copy)
            else:
                copy.write_bytes(content)
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot copy the model there ({error.strerror})", "Name another folder in TMPDIR"
            ) from error
        try:
            return _from_archive(copy, folder, keras) if kind == ARCHIVE else _from_hdf5(copy, keras)
        except UnsafeModelError as error:
            raise BundleError(
                f"{path}: refused: {printable(str(error))}", "Save the model again, with only Keras' own layers"
            ) from error
        except Exception as error:  # ValueError, TypeError, KeyError, zipfile's, h5py's and TensorFlow's errors
            reason = printable(first_line(error).replace(str(folder), ""))[:300]
            raise BundleError(
                f"{path}: Keras cannot open it ({reason})", "Save the model with model.save, or copy it again"
            ) from error


def check_kind(path: Path) -> bytes:
    """Return the first bytes that identify a model file, ``ARCHIVE`` or ``HDF5``.

    Raises
    ------
    BundleError
        The file is missing, not readable, not a file, a Git LFS pointer, or of another kind.
    """
    if not path.exists():
        raise BundleError(f"{path}: no such model file", "Name a .keras or .h5 file")
    if not path.is_file():
        raise BundleError(f"{path}: is not a file", "Name a .keras or .h5 file")
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise BundleError(f"{path}: cannot read ({error.strerror})", "Name a .keras or .h5 file") from error
    return _kind_of(head, path)


def one_column_a_class(answer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities (N, classes). A model with one sigmoid gives (N, 1), the probability of the second class."""
    return np.hstack([1 - answer, answer]) if answer.shape[1] == 1 else answer


def _kind_of(head: bytes, path: Path) -> bytes:
    if is_lfs_pointer(head):
        raise BundleError(f"{path}: is a Git LFS pointer, not the model", HINT)
    for magic in (ARCHIVE, HDF5):
        if head.startswith(magic):
            return magic
    raise BundleError(
        f"{path}: Keras cannot open it (neither a .keras nor an .h5 file)", "Save the model with model.save"
    )


def _from_archive(copy: Path, folder: Path, keras: Any) -> Any:
    content, weights = unpack(copy, folder)
    check_hdf5(weights)
    text = _check_and_convert(content)
    return _build(lambda: keras.saving.deserialize_keras_object(json.loads(text), safe_mode=True), weights, keras)


def _from_hdf5(copy: Path, keras: Any) -> Any:
    weights = copy.rename(copy.with_suffix(".h5"))  # Keras chooses the format by the suffix
    check_hdf5(weights)
    import h5py

    with h5py.File(weights, "r") as file:
        content = file.attrs.get("model_config")
    if content is None:
        raise ValueError("it contains only weights, no model")
    text = _check_and_convert(content)

    def build() -> Any:
        config = json.loads(text)
        container = keras.Sequential if config["class_name"] == "Sequential" else keras.Model
        return container.from_config(config["config"])

    return _build(build, weights, keras)


def _check_and_convert(content: str | bytes) -> str:
    """Return the checked description in the form of Keras 3: JSON text, because building modifies the object."""
    if len(content) > _LARGEST_DESCRIPTION:
        raise UnsafeModelError(f"its description has more than {_LARGEST_DESCRIPTION:,} bytes")
    config = json.loads(content)
    if not isinstance(config, dict) or config.get("class_name") not in _CONTAINERS:
        name = config.get("class_name") if isinstance(config, dict) else type(config).__name__
        raise UnsafeModelError(f"it holds {name!r}, not a model of layers")
    config = to_keras3(config)
    check_description(config)
    return json.dumps(config)


def _build(build: Callable[[], Any], weights: Path, keras: Any) -> Any:
    """Build the model and load its arrays, after checking how much memory it takes."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_check_draft, build, weights.stat().st_size, keras).result()
    model = build()
    if not model.built:
        raise ValueError("its layers have no shape: it was saved before its first use")
    with warnings.catch_warnings():
        # Keras only warns about layers without arrays in the file, and leaves their random values.
        warnings.simplefilter("error", UserWarning)
        model.load_weights(weights)
    for layer in _layers(model):
        # Inside another model, Keras sets the arrays of a Normalization but not the values derived from them.
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return model


def _check_draft(build: Callable[[], Any], size: int, keras: Any) -> None:
    """Build the model without memory for its variables, and check their sum. Call it in a separate thread.

    Keras keeps a list of variables without memory for each thread, and would allocate them later.
    """
    with keras.StatelessScope(initialize_variables=False):
        _check_size(build(), size, keras)


def _layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _layers(layer)
        else:
            yield layer


def _check_size(model: Any, size: int, keras: Any) -> None:
    """Refuse a model if its variables, or its tensors for one picture, are too large for its file."""
    needed = 4 * sum(math.prod(variable.shape) for variable in model.variables)
    if needed > unpacked_limit(size):
        raise UnsafeModelError(
            f"its layers need {needed:,} bytes of weights, far more than the file of {size:,} bytes contains"
        )
    for layer in _layers(model):
        for tensor in keras.tree.flatten([node.outputs for node in layer._inbound_nodes]):
            values = math.prod(length or 1 for length in tensor.shape)
            if values > _LARGEST_OUTPUT:
                raise UnsafeModelError(f"layer {layer.name!r} gives {values:,} values for one picture")
