"""Decode the scans of a data folder once: pixels at network size, slices at their own size, near-duplicate groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from mri_edge.commands.progress import track
from mri_edge.device.cpu import available_cpus
from mri_edge.errors import DataError, InputError
from mri_edge.scans import readers
from mri_edge.scans.frame import Pixels
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.transforms.mri import Slice

from .duplicates import HASH_BITS, Hashes, difference_hash
from .folder import Scan
from .grouping import BLOCKS, NEAR_DUPLICATES, GroupRule, group_scans
from .mapped import cannot_store, mapped_array
from .order import THUMBNAIL, FileOrder, measure_order, thumbnail

Indices = NDArray[np.intp]

_LARGEST_SLICE = 512 * 512  # bytes; larger slices are rare in public data sets


@dataclass(frozen=True)
class Collection:
    """The scans of a data folder; arrays have one entry per scan.

    ``slices`` keep their own size; the list is empty if the recipe does not need them. ``pixels`` are uint8
    (N, height, width, 3) RGB at the network's size. ``source`` is the folder above the class folders. ``group`` is the
    number of the group that no split divides; ``grouping`` describes the rule that made the groups. ``order`` says for
    each source whether the order of files carries identity.
    """

    scans: Sequence[Scan]
    slices: list[Slice]
    pixels: NDArray[np.uint8]
    label: Indices
    source: NDArray[np.str_]
    group: Indices
    hashes: Hashes
    grouping: str = NEAR_DUPLICATES
    order: Sequence[FileOrder] = ()

    @property
    def smaller_groups(self) -> str:
        """The beginning of a hint: to use smaller groups, which near-duplicates have not."""
        if self.grouping.startswith(NEAR_DUPLICATES):
            return ""
        return f"smaller groups (--groups {BLOCKS}:SIZE or {NEAR_DUPLICATES}), "


def collect(
    scans: Sequence[Scan],
    preprocessing: Preprocessing,
    *,
    rule: GroupRule | None = None,
    patients: Sequence[str] | None = None,
    store: Path | None = None,
    with_slices: bool = True,
) -> Collection:
    """Decode every scan once.

    Parameters
    ----------
    rule
        What a group of scans is; None means near-duplicates.
    patients
        Patient of each scan, if the rule names a file with patients.
    store
        Folder for the pixels and slices, which are memory-mapped; ``None`` keeps them in memory.
    with_slices
        Also keep the slices at their own size.

    Raises
    ------
    DataError
        Some scans cannot be read; the message names all of them.
    OutputError
        The store cannot be written.
    """
    slices: dict[int, Slice] = {}
    if not with_slices:
        decoded = decode(scans, preprocessing, store / "pixels.npy" if store else None)
    elif store is None:
        decoded, slices = _decode_in_memory(scans, preprocessing)
    else:
        decoded, slices = _decode_to_disk(scans, preprocessing, store)
    order = measure_order(scans, decoded.thumbnails)
    grouping = group_scans(scans, decoded.hashes, order, rule or GroupRule(), patients)
    return Collection(
        scans=scans,
        slices=[slices[index] for index in sorted(slices)],
        pixels=decoded.pixels,
        label=np.array([scan.label for scan in scans]),
        source=np.array([scan.source for scan in scans]),
        group=grouping.group,
        hashes=decoded.hashes,
        grouping=grouping.text,
        order=order,
    )


def store_bytes(scans: Sequence[Scan], preprocessing: Preprocessing, *, with_slices: bool = True) -> int:
    """Return an upper bound of the bytes that ``collect`` writes to its store, for scans of common sizes."""
    return pixel_bytes(scans, preprocessing) + (len(scans) * _LARGEST_SLICE if with_slices else 0)


def _decode_in_memory(scans: Sequence[Scan], preprocessing: Preprocessing) -> tuple[Decoded, dict[int, Slice]]:
    slices: dict[int, Slice] = {}

    def keep(index: int, picture: Pixels) -> None:
        slices[index] = Slice.from_pixels(picture)

    return decode(scans, preprocessing, None, keep), slices


def _decode_to_disk(
    scans: Sequence[Scan], preprocessing: Preprocessing, store: Path
) -> tuple[Decoded, dict[int, Slice]]:
    """Decode, append all slices to one file and memory-map it."""
    places: dict[int, tuple[int, tuple[int, ...], tuple[int, int, int, int]]] = {}
    lock = Lock()
    try:
        with open(store / "slices", "w+b") as file:

            def keep(index: int, picture: Pixels) -> None:
                own_size = Slice.from_pixels(picture)
                with lock:
                    places[index] = file.tell(), own_size.gray.shape, own_size.head
                    file.write(own_size.gray.tobytes())

            decoded = decode(scans, preprocessing, store / "pixels.npy", keep)
            file.flush()
            mapped = np.asarray(np.memmap(file, np.uint8, "r"))
    except OSError as error:
        raise cannot_store(store, error) from error
    return decoded, {
        index: Slice(mapped[start : start + height * width].reshape(height, width), head)
        for index, (start, (height, width), head) in places.items()
    }


@dataclass(frozen=True)
class Decoded:
    """What is computed from each picture.

    ``pixels`` are uint8 (N, height, width, 3) RGB at the network's size, ``hashes`` bool (N, 128), and ``thumbnails``
    uint8 (N, 24, 24) gray.
    """

    pixels: NDArray[np.uint8]
    hashes: Hashes
    thumbnails: NDArray[np.uint8]


def pixel_bytes(scans: Sequence[Scan], preprocessing: Preprocessing) -> int:
    """Return the bytes that ``decode`` writes to its store."""
    return len(scans) * preprocessing.height * preprocessing.width * 3


def decode(
    scans: Sequence[Scan],
    preprocessing: Preprocessing,
    store: Path | None,
    each: Callable[[int, Pixels], None] = lambda index, picture: None,
) -> Decoded:
    """Decode all scans once.

    Parameters
    ----------
    store
        File for the pixels, which is memory-mapped; ``None`` keeps them in memory.
    each
        Called with the position of each scan and its picture at its own size, from several threads.

    Raises
    ------
    DataError
        Some scans cannot be read; the message names all of them.
    OutputError
        The store cannot be written.
    """
    shape = (len(scans), preprocessing.height, preprocessing.width, 3)
    pixels: NDArray[np.uint8] = np.empty(shape, np.uint8) if store is None else mapped_array(store, np.uint8, shape)
    hashes = np.zeros((len(scans), HASH_BITS), bool)
    thumbnails = np.zeros((len(scans), THUMBNAIL, THUMBNAIL), np.uint8)
    unreadable: list[str] = []

    def fill(index: int) -> None:
        try:
            picture = readers.load(scans[index].path)
        except InputError as error:
            unreadable.append(f"{scans[index].file} ({error.problem.removeprefix(f'{scans[index].path}: ')})")
        else:
            pixels[index] = preprocessing.resize_picture(picture)
            hashes[index] = difference_hash(picture)
            thumbnails[index] = thumbnail(picture)
            each(index, picture)

    with ThreadPoolExecutor(available_cpus()) as pool:
        for _ in track(pool.map(fill, range(len(scans))), "reading scans", len(scans)):
            pass
    if unreadable:
        raise DataError(
            f"{len(unreadable)} of {len(scans)} scans cannot be read: {'; '.join(sorted(unreadable))}",
            "Repair them, or exclude them with --exclude",
        )
    return Decoded(pixels, hashes, thumbnails)
