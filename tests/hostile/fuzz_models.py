"""Damage model files in many ways, and check that each opens or is refused with a message.

    python tests/hostile/fuzz_models.py OUT KIND=COUNT...

Kinds: keras, keras-inside, h5, saved, backbone-h5, backbone-ckpt.

Prints as JSON how many of each kind opened and how many were refused; any other error ends it with a traceback.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut the content off, flip bits, overwrite a run of bytes, or remove a piece."""
    kind = rng.integers(4)
    start = int(rng.integers(len(content)))
    if kind == 0:
        return content[:start]
    if kind == 1:
        changed = bytearray(content)
        for place in rng.integers(len(content), size=int(rng.integers(1, 9))):
            changed[place] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    length = int(rng.integers(1, 64))
    piece = rng.bytes(length) if kind == 2 else b""
    return content[:start] + piece + content[start + length :]


def damaged_inside(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage one member of an archive, and correct its checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    victim = ("config.json", "model.weights.h5")[int(rng.integers(2))]
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as archive:
        for name, inner in members.items():
            archive.writestr(name, damaged(inner, rng) if name == victim else inner)
    return changed.getvalue()


def head(content: bytes) -> bytes:
    """Return where HDF5 and pickle store other data than numbers, a small part of a large file."""
    return content[:16_384]


def subjects(folder: Path, kind: str, count: int) -> Iterator[tuple[Path, Callable[[Path], object]]]:
    """Yield each damaged file, and the function that opens it."""
    rng = np.random.default_rng(7)
    if kind.startswith("backbone"):
        from mri_edge.train.models.weight_files import KERNEL_SHAPES
        from mri_edge.train.models.weights import load_weights

        arrays = [(np.zeros(shape, np.float32), np.zeros(shape[3], np.float32)) for shape in KERNEL_SHAPES]
        path = folder / "sound"
        if kind == "backbone-h5":
            with h5py.File(path, "w") as file:
                for index, (kernel, bias) in enumerate(arrays):
                    file[f"conv_{index}/kernel"], file[f"conv_{index}/bias"] = kernel[..., :1], bias
        else:
            layers = {f"Conv_{index}": {"kernel": k[..., :1], "bias": b} for index, (k, b) in enumerate(arrays)}
            path.write_bytes(pickle.dumps({"VGG16_0": layers}))

        def opens(path: Path) -> object:
            return load_weights(str(path))

    else:
        import keras

        from mri_edge.export.sources.keras_model import load
        from mri_edge.export.sources.saved_model import load_saved_model

        entry = keras.Input((32, 32, 3))
        hidden = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(entry))
        model = keras.Model(entry, keras.layers.Dense(2, activation="softmax")(hidden))
        if kind == "saved":
            model.export(folder / "saved", verbose=False)
            files = ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
            for _ in range(count):
                shutil.rmtree(folder / "damaged", ignore_errors=True)
                shutil.copytree(folder / "saved", folder / "damaged")
                victim = folder / "damaged" / files[int(rng.integers(3))]
                victim.write_bytes(damaged(victim.read_bytes(), rng))
                yield folder / "damaged", lambda path: load_saved_model(path, 32, 32)
            return
        path = folder / ("sound.h5" if kind == "h5" else "sound.keras")
        model.save(path)
        opens = load
    content = path.read_bytes()
    start = head(content)
    for _ in range(count):
        changed = (
            damaged_inside(content, rng) if kind == "keras-inside" else damaged(start, rng) + content[len(start) :]
        )
        (folder / "damaged").write_bytes(changed)
        yield folder / "damaged", opens


def outcomes(folder: Path, kind: str, count: int) -> dict[str, int]:
    """Open as many damaged files of a kind, and count the outcomes."""
    from mri_edge.errors import BundleError

    folder.mkdir()
    found = {"opened": 0, "refused": 0}
    for path, opens in subjects(folder, kind, count):
        try:
            opens(path)
            found["opened"] += 1
        except BundleError as error:
            found["refused"] += 1
            if "\n" in str(error):
                raise AssertionError("the refusal has more than one line") from error
    return found


if __name__ == "__main__":
    counts = {kind: int(count) for kind, count in (argument.split("=") for argument in sys.argv[2:])}
    print(json.dumps({kind: outcomes(Path(sys.argv[1]) / kind, kind, count) for kind, count in counts.items()}))
