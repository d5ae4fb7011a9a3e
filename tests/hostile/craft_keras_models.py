"""Make Keras models that attack the program that opens them; as a program, open each and print its memory use.

    python tests/hostile/craft_keras_models.py OUT     makes them, opens them, prints MB by name as JSON

Each crafter writes one file into a folder. Where it holds code, that code makes the file ``marker`` beside it.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CRAFTERS: dict[str, tuple[Callable[[Path], Path], str]] = {}  # name -> crafter, text of the refusal
BOMBS: set[str] = set()  # names of those that request memory
GIGABYTE = 1 << 30


def crafter(words: str, *, bomb: bool = False) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    def add(function: Callable[[Path], Path]) -> Callable[[Path], Path]:
        CRAFTERS[function.__name__] = (function, words)
        if bomb:
            BOMBS.add(function.__name__)
        return function

    return add


# Valid files to start from.


def network(*extra: Any) -> Any:
    """Make a model from 32 x 32 pictures to two probabilities, with ``extra`` layers after the convolution."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(4, 3, activation="relu"),
            *extra,
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, activation="softmax"),
        ]
    )


def save(folder: Path, name: str, *extra: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network(*extra).save(folder / name)
    return folder / name


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write the same ``.keras`` file with another description."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, json.dumps(config) if name == "config.json" else content)
    return path


def with_layer(folder: Path, layer: dict[str, Any]) -> Path:
    """Write a valid ``.keras`` file with one more entry among its layers."""
    return rewritten(save(folder, "model.keras"), lambda config: config["config"]["layers"].insert(2, layer))


def with_weights(folder: Path, change: Callable[[h5py.File], None], name: str = "model.h5") -> Path:
    """Write a valid ``.h5`` file, and change its HDF5 content."""
    path = save(folder, name)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def layer(module: str | None, class_name: str, config: Any, registered_name: str | None = None) -> dict[str, Any]:
    return {"module": module, "class_name": class_name, "config": config, "registered_name": registered_name}


def function(module: str, name: str) -> dict[str, Any]:
    return layer(module, "function", name, name)


# Code.


def _lambda(folder: Path) -> Any:
    import keras

    marker = str(folder / "marker")
    # Keras marshals the bytecode, so it must not refer to this module.
    code = eval(f"lambda x: (x, open({marker!r}, 'w').close())[0]")  # noqa: S307
    return keras.layers.Lambda(code, output_shape=(30, 30, 4))


def _forget(folder: Path) -> None:
    (folder / "marker").unlink(missing_ok=True)  # it ran when the model was made


@crafter("Lambda layer")
def lambda_keras(folder: Path) -> Path:
    path = save(folder, "model.keras", _lambda(folder))
    _forget(folder)
    return path


@crafter("Lambda layer")
def lambda_h5(folder: Path) -> Path:
    path = save(folder, "model.h5", _lambda(folder))
    _forget(folder)
    return path


@crafter("Lambda layer")
def lambda_in_a_wrapper(folder: Path) -> Path:
    path = lambda_keras(folder)

    def wrap(config: dict[str, Any]) -> None:
        layers = config["config"]["layers"]
        layers[2] = layer("keras.layers", "TimeDistributed", {"name": "t", "layer": layers[2]})

    return rewritten(path, wrap)


@crafter("names a function of 'os'")
def function_of_os(folder: Path) -> Path:
    return with_layer(
        folder, layer("keras.layers", "Activation", {"name": "a", "activation": function("os", "system")})
    )


@crafter("names a function of 'keras.utils'")
def function_that_downloads(folder: Path) -> Path:
    return with_layer(
        folder, layer("keras.layers", "Activation", {"name": "a", "activation": function("keras.utils", "get_file")})
    )


@crafter("names a function of 'keras.config'")
def safe_mode_switched_off(folder: Path) -> Path:
    return with_layer(folder, function("keras.config", "enable_unsafe_deserialization"))


@crafter("holds 'Popen' of 'subprocess'")
def class_of_another_module(folder: Path) -> Path:
    marker = str(folder / "marker")
    return with_layer(folder, layer("subprocess", "Popen", {"args": ["touch", marker]}))


@crafter("registered as 'package>Thing'")
def registered_name(folder: Path) -> Path:
    return with_layer(folder, layer("keras.layers", "ReLU", {"name": "r"}, "package>Thing"))


@crafter("holds 'TFSMLayer'")
def graph_of_another_file(folder: Path) -> Path:
    return with_layer(folder, layer("keras.layers", "TFSMLayer", {"filepath": str(folder), "name": "t"}))


@crafter("holds 'TorchModuleWrapper'")
def torch_module(folder: Path) -> Path:
    return with_layer(folder, layer("keras.layers", "TorchModuleWrapper", {"module": "x", "name": "t"}))


@crafter("holds 'StringLookup'")
def vocabulary_of_a_file(folder: Path) -> Path:
    return with_layer(folder, layer("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd", "name": "s"}))


@crafter("holds 'TextVectorization'")
def vocabulary_of_a_server(folder: Path) -> Path:
    return with_layer(
        folder, layer("keras.layers", "TextVectorization", {"vocabulary": "http://127.0.0.1:9/", "name": "s"})
    )


@crafter("__typespec__")
def type_of_another_module(folder: Path) -> Path:
    spec = {"class_name": "__typespec__", "spec_name": "Popen", "module": "subprocess", "registered_name": None}
    return with_layer(folder, layer("keras.layers", "ReLU", {"name": "r", "max_value": spec | {"config": []}}))


@crafter("which is not a layer")
def code_in_an_initializer(folder: Path) -> Path:
    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][1]["config"]["kernel_initializer"] = layer("os", "system", {"command": "true"})

    return rewritten(save(folder, "model.keras"), change)


@crafter("not a model of layers")
def no_model_at_all(folder: Path) -> Path:
    def change(config: dict[str, Any]) -> None:
        config.update(layer("keras.optimizers", "Adam", {}))

    return rewritten(save(folder, "model.keras"), change)


# Other files.


def _secret(folder: Path) -> Path:
    with h5py.File(folder / "secret.h5", "w") as file:
        file["array"] = np.zeros(4, np.float32)
    return folder / "secret.h5"


def _replace(file: h5py.File, put: Callable[[h5py.Group, str], None]) -> None:
    """Replace the bias of the convolution."""
    names: list[str] = []
    file.visit(lambda name: names.append(name) if name.endswith("bias") else None)
    group, _, name = sorted(names)[0].rpartition("/")
    del file[group][name]
    put(file[group], name)


@crafter("must be in the file itself")
def external_link(folder: Path) -> Path:
    link = h5py.ExternalLink(str(_secret(folder)), "array")
    return with_weights(folder, lambda file: _replace(file, lambda group, name: group.__setitem__(name, link)))


@crafter("must be in the file itself")
def soft_link(folder: Path) -> Path:
    link = h5py.SoftLink("/model_weights")
    return with_weights(folder, lambda file: _replace(file, lambda group, name: group.__setitem__(name, link)))


@crafter("must be in the file itself")
def external_storage(folder: Path) -> Path:
    def put(group: h5py.Group, name: str) -> None:
        group.create_dataset(name, (4,), np.float32, external=[("/etc/passwd", 0, 16)])

    return with_weights(folder, lambda file: _replace(file, put))


@crafter("must be in the file itself")
def virtual_array(folder: Path) -> Path:
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource(_secret(folder), "array", (4,))
    return with_weights(
        folder, lambda file: _replace(file, lambda group, name: group.create_virtual_dataset(name, layout))
    )


@crafter("must be in the file itself")
def external_link_in_an_archive(folder: Path) -> Path:
    path = save(folder, "model.keras")
    link = h5py.ExternalLink(str(_secret(folder)), "array")
    return with_archived_weights(path, lambda file: file.__setitem__("extra", link))


def with_archived_weights(path: Path, change: Callable[[h5py.File], None], compression: int = 0) -> Path:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    weights = path.with_name("weights.h5")
    weights.write_bytes(members["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        change(file)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, weights.read_bytes() if name == "model.weights.h5" else content)
    return path


# Shapes that HDF5 allows and weights do not have.


@crafter("linked from two places, or into itself")
def group_in_itself(folder: Path) -> Path:
    return with_weights(folder, lambda file: file["model_weights"].__setitem__("again", file["model_weights"]))


@crafter("linked from two places, or into itself")
def one_array_twice(folder: Path) -> Path:
    def change(file: h5py.File) -> None:
        file["one"] = np.zeros(4, np.float32)
        file["two"] = file["one"]

    return with_weights(folder, change)


@crafter("nested more than")
def deep_groups(folder: Path) -> Path:
    return with_weights(folder, lambda file: file.create_group("/".join(["g"] * 100)) and None)


@crafter("is not an array of numbers")
def texts(folder: Path) -> Path:
    return with_weights(folder, lambda file: file.create_dataset("t", (4,), h5py.string_dtype()) and None)


@crafter("not compressed with gzip")
def other_filter(folder: Path) -> Path:
    zeros = np.zeros(4096, np.float32)
    return with_weights(folder, lambda file: file.create_dataset("z", data=zeros, compression="lzf") and None)


# Memory.


@crafter("unpacks to", bomb=True)
def empty_array(folder: Path) -> Path:
    return with_weights(folder, lambda file: file.create_dataset("z", (3 * GIGABYTE,), np.float32) and None)


@crafter("unpacks to", bomb=True)
def many_empty_arrays(folder: Path) -> Path:
    """Write arrays that are each within the limit of one array, but take 6 GB together."""

    def change(file: h5py.File) -> None:
        for index in range(600):
            file.create_dataset(f"z{index}", (10 << 20,), np.uint8)

    return with_weights(folder, change)


@crafter("unpacks to", bomb=True)
def packed_array(folder: Path) -> Path:
    """Write half a gigabyte of zeros as half a megabyte, chunk by chunk to save memory."""

    def change(file: h5py.File) -> None:
        chunk = zlib.compress(bytes(1 << 20), 9)
        array = file.create_dataset("z", (512 << 20,), np.uint8, chunks=(1 << 20,), compression="gzip")
        for index in range(512):
            array.id.write_direct_chunk((index << 20,), chunk)

    return with_weights(folder, change)


@crafter("inflates to more", bomb=True)
def chunk_without_end(folder: Path) -> Path:
    """Write a chunk of 16 kB that HDF5 inflates to a gigabyte."""

    def change(file: h5py.File) -> None:
        packer = zlib.compressobj(9)
        stream = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()
        array = file.create_dataset("z", (4096,), np.float32, chunks=(4096,), compression="gzip")
        array.id.write_direct_chunk((0,), stream)

    return with_weights(folder, change)


@crafter("names an array twice", bomb=True)
def one_array_named_a_thousand_times(folder: Path) -> Path:
    def change(file: h5py.File) -> None:
        group = next(group for group in file["model_weights"].values() if len(group.attrs["weight_names"]))
        group["big"] = np.zeros(4 << 20, np.float32)
        group.attrs["weight_names"] = [b"big"] * 1000

    return with_weights(folder, change)


@crafter("unpacks to", bomb=True)
def packed_archive(folder: Path) -> Path:
    """Write a ``.keras`` file of some kilobytes with half a gigabyte of zeros in its weights."""
    path = save(folder, "model.keras")

    def change(file: h5py.File) -> None:
        file.create_dataset("z", data=np.zeros(512 << 20, np.uint8))

    return with_archived_weights(path, change, zipfile.ZIP_DEFLATED)


@crafter("holds other things than a model")
def asset_in_an_archive(folder: Path) -> Path:
    path = save(folder, "model.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../marker", "x")
    return path


@crafter("one name twice")
def member_twice(folder: Path) -> Path:
    path = save(folder, "model.keras")
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("config.json", "{}")
    return path


@crafter("layers need", bomb=True)
def wide_layer(folder: Path) -> Path:
    """Write small weights with a description that requests 8 GB."""

    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][-1]["config"]["units"] = 500_000_000

    return rewritten(save(folder, "model.keras"), change)


@crafter("layers need", bomb=True)
def wide_layer_h5(folder: Path) -> Path:
    def change(file: h5py.File) -> None:
        text = file.attrs["model_config"]
        file.attrs["model_config"] = text.replace('"units": 2', '"units": 500000000')

    return with_weights(folder, change)


@crafter("values for one picture", bomb=True)
def wide_activation(folder: Path) -> Path:
    import keras

    return save(folder, "model.keras", keras.layers.UpSampling2D(1000))


@crafter("names more than", bomb=True)
def many_layers(folder: Path) -> Path:
    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][2:2] = [layer("keras.layers", "ReLU", {})] * 60_000

    return rewritten(save(folder, "model.keras"), change)


@crafter("Keras cannot open it")
def deep_description(folder: Path) -> Path:
    path = save(folder, "model.keras")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"[" * 200_000 if name == "config.json" else content)
    return path


@crafter("Keras cannot open it")
def sizes_that_lie(folder: Path) -> Path:
    """Write an archive that declares 10 bytes for a member that inflates to more."""
    path = packed_archive(folder)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        start = content.rfind(signature, 0, content.rfind(b"model.weights.h5" if offset == 24 else b"PK\x01\x02"))
        struct.pack_into("<I", content, start + offset, 10)
    path.write_bytes(content)
    return path


def measure(folder: Path) -> dict[str, float]:
    """Open each bomb. Return by name how many MB the peak memory of this process rose."""
    import resource

    import keras

    from mri_edge.authoring.keras_models.loading import open_model
    from mri_edge.errors import BundleError

    paths = {}
    for name in sorted(BOMBS):
        (folder / name).mkdir()
        # In a new process, because the memory for crafting must not hide that for opening.
        child = os.fork()
        if child == 0:
            CRAFTERS[name][0](folder / name)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, name
        paths[name] = next(path for path in (folder / name).iterdir() if path.name in ("model.h5", "model.keras"))
    (folder / "sound").mkdir()
    open_model(save(folder / "sound", "model.keras"), keras)
    rises = {}
    for name, path in paths.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            open_model(path, keras)
        except BundleError as error:
            print(name, error, file=sys.stderr)
        else:
            raise AssertionError(f"{name} was opened")
        rises[name] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return rises


if __name__ == "__main__":
    import keras  # noqa: F401 (before the fork)

    print(json.dumps(measure(Path(sys.argv[1]))))
