"""Check the files of a Keras model before its arrays are read: the ``.keras`` archive and the HDF5 weights.

HDF5 can link to other files, map arrays from them, run filters from shared libraries, link a group into
itself, and declare arrays of any size in a few bytes. Weight files need none of this. What either file may unpack to
is limited by its own size.
"""

from __future__ import annotations

import math
import mmap
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# Largest sum of the arrays of one file, in bytes: VGG16 with its top has 553 MB, the largest image
# classifier of Keras 1.4 GB.
_LARGEST = 4 << 30
# Trained weights hardly compress, and Keras does not compress them; pruned ones may shrink to a fifth.
_ALLOWANCE, _RATIO = 64 << 20, 10

_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
# The files that Keras writes for a model without lookup tables.
_MEMBERS = {_CONFIG, _WEIGHTS, "metadata.json"}
_LARGEST_CONFIG = 16 << 20  # bytes; EfficientNetB7 has 1 MB
_PIECE = 1 << 20

# Limit in bytes for the list of a model's layers, if each name were as long as the longest text in the file.
# That text is the description: 1 MB for the 1,000 layers of NASNetLarge.
_LARGEST_LIST = 2 << 30
_DEEPEST = 64  # groups inside groups; Keras nests one group per model
_KINDS = "biuf"  # kinds of numbers, as NumPy's letters
_NAME_LISTS = re.compile(r"(layer_names|weight_names)\d*")
# A global heap collection, where HDF5 keeps strings of variable length: signature, version 1, three zeros,
# then its size in 8 bytes (HDF5 File Format Specification 3.0, III.E).
_HEAP = b"GCOL\x01\0\0\0"


class UnsafeModelError(ValueError):
    """A model file needs more than a classifier should: code, other files, or too much memory for its size."""


def unpacked_limit(size: int) -> int:
    """Largest sum in bytes that a file of ``size`` bytes may unpack to."""
    return min(_LARGEST, _ALLOWANCE + _RATIO * size)


def check_unpacked(total: int, size: int, name: str) -> None:
    """Raise UnsafeModelError if ``total`` bytes are too many for a file of ``size`` bytes."""
    if total > unpacked_limit(size):
        raise UnsafeModelError(
            f"{name} of {size:,} bytes unpacks to {total:,} bytes or more, the limit is {unpacked_limit(size):,}"
        )


def unpack(path: Path, folder: Path) -> tuple[bytes, Path]:
    """Unpack into ``folder``. Returns the bytes of ``config.json`` and the path of the weights.

    Raises
    ------
    UnsafeModelError
        It contains other files, or unpacks to more than ``unpacked_limit``.
    OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error
        It is not such an archive, or is damaged.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names) or not set(names) <= _MEMBERS:
            others = sorted(set(names) - _MEMBERS) or ["one name twice"]
            raise UnsafeModelError(f"the archive holds other things than a model: {others[0]!r}")
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in archive.infolist()):
            raise UnsafeModelError("the archive is not compressed with deflate")
        if archive.getinfo(_CONFIG).file_size > _LARGEST_CONFIG:
            raise UnsafeModelError(f"{_CONFIG} has more than {_LARGEST_CONFIG:,} bytes")
        check_unpacked(sum(member.file_size for member in archive.infolist()), size, "archive")
        with archive.open(_CONFIG) as file:
            config = file.read(_LARGEST_CONFIG)
        weights = folder / _WEIGHTS
        with archive.open(_WEIGHTS) as source, open(weights, "xb") as target:
            _copy(source, target, size)
    return config, weights


def check_hdf5(path: Path) -> int:
    """Check a weight file. Returns the total size of its arrays in bytes.

    Raises
    ------
    UnsafeModelError
        The file refers to other files, contains anything but numbers, or unpacks to too much.
    OSError, ValueError, KeyError, RuntimeError
        HDF5 cannot read it.
    """
    import h5py

    size = path.stat().st_size
    longest = _longest_string(path)
    total = 0
    with h5py.File(path, "r") as content:
        for name, item in _items(content):
            _check_attributes(name, item, longest)
            if isinstance(item, h5py.Dataset):
                total += _check_dataset(name, item, unpacked_limit(size))
            check_unpacked(total, size, "HDF5 file")
    return total


def _longest_string(path: Path) -> int:
    """Upper limit in bytes for a string of variable length: the largest heap collection in the file."""
    longest = 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_HEAP)
        while start >= 0:
            longest = max(longest, int.from_bytes(content[start + 8 : start + 16], "little"))
            start = content.find(_HEAP, start + 1)
    return min(longest, path.stat().st_size)


def _items(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield each group and dataset once, with its name. Soft links, external links and cycles are refused."""
    import h5py

    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("/", root, 0)]
    while waiting:
        name, item, depth = waiting.pop()
        address = hash(item.id)  # of the file's number and the object's address
        if address in seen:
            raise UnsafeModelError(f"{name}: is linked from two places, or into itself")
        seen.add(address)
        if depth > _DEEPEST:
            raise UnsafeModelError(f"{name[:80]}: groups are nested more than {_DEEPEST} deep")
        yield name, item
        if isinstance(item, h5py.Group):
            for key in item:
                inner = f"{name.rstrip('/')}/{key}"
                if not isinstance(item.get(key, getlink=True), h5py.HardLink):
                    raise UnsafeModelError(f"{inner}: arrays must be in the file itself, this is a link")
                waiting.append((inner, item[key], depth + 1))
        elif not isinstance(item, h5py.Dataset):
            raise UnsafeModelError(f"{name}: is neither a group nor an array")


def _check_dataset(name: str, dataset: Any, limit: int) -> int:
    """Check an array. Returns the size in bytes that it declares."""
    if dataset.external or dataset.is_virtual:
        raise UnsafeModelError(f"{name}: arrays must be in the file itself")
    if dataset.shape is None or dataset.dtype.kind not in _KINDS:
        raise UnsafeModelError(f"{name}: is not an array of numbers ({dataset.dtype})")
    declared = int(dataset.nbytes)
    if dataset.chunks and declared <= limit:
        _check_chunks(name, dataset, limit)
    return declared


def _check_chunks(name: str, dataset: Any, limit: int) -> None:
    """Check the inflated size of the chunks, because HDF5 inflates each to the end of its stream."""
    import h5py

    plan = dataset.id.get_create_plist()
    known = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
    filters = [plan.get_filter(index)[0] for index in range(plan.get_nfilters())]
    if len(set(filters)) < len(filters) or not set(filters) <= set(known):
        raise UnsafeModelError(f"{name}: is not compressed with gzip (filters {filters})")
    whole = dataset.dtype.itemsize * math.prod(dataset.chunks)
    if whole > limit:
        raise UnsafeModelError(f"{name}: has chunks of {whole:,} bytes")
    if h5py.h5z.FILTER_DEFLATE not in filters:
        return
    for index in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(index)
        if chunk.size > limit:
            raise UnsafeModelError(f"{name}: has a chunk of {chunk.size:,} bytes in the file")
        skipped, packed = dataset.id.read_direct_chunk(chunk.chunk_offset)
        if skipped >> filters.index(h5py.h5z.FILTER_DEFLATE) & 1:
            continue
        if len(zlib.decompressobj().decompress(packed, whole + 5)) > whole + 4:  # it may contain a checksum
            raise UnsafeModelError(f"{name}: a chunk of {whole:,} bytes inflates to more")


def _check_attributes(name: str, item: Any, longest: int) -> None:
    """Limit the size of an object's attributes. Lists of names must not repeat a name.

    Keras reads an array each time it is named, and all arrays of a layer at once.
    """
    import numpy as np

    for key in item.attrs:
        attribute = item.attrs.get_id(key)
        size = attribute.dtype.itemsize + (longest if attribute.dtype.kind == "O" else 0)
        if math.prod(attribute.shape) * size > _LARGEST_LIST:
            raise UnsafeModelError(f"{name}: its attribute {key!r} may take more than {_LARGEST_LIST:,} bytes")
        if _NAME_LISTS.fullmatch(key):
            listed = [item.decode() if isinstance(item, bytes) else str(item) for item in np.ravel(item.attrs[key])]
            parts = [part for entry in listed for part in entry.split("/")]
            if len(set(listed)) < len(listed) or any(part in ("", ".", "..") for part in parts):
                raise UnsafeModelError(f"{name}: its {key} names an array twice")


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    """Copy in pieces and check the size, because the archive's directory may declare a wrong one."""
    done = 0
    while piece := source.read(_PIECE):
        done += len(piece)
        if done > unpacked_limit(size):
            check_unpacked(done, size, "archive")
        target.write(piece)
