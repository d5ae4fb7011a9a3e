"""Keep the list of inputs in Parquet files, and read it in tasks of Ray Data.

The list is written once, before anything is classified: each input has a number, which a continued run finds again. A
worker reads the part of the list that it needs, so that no process ever holds the whole list.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from mri_edge.storage.atomic import make_folder

from .record import UNFINISHED
from .schema import INPUT
from .units import Unit

UNIT = "unit"
_SCHEMA = pa.schema([(INPUT, pa.int64()), (UNIT, pa.string())])
_PARTS_PER_FILE = 128  # a file begins with the positions of its parts, which every task reads


def write_inputs(units: Iterable[Unit], folder: Path, per_part: int) -> int:
    """Write the list of inputs into a new folder, ``per_part`` inputs in each row group, and return their number.

    The folder gets its name when the list is complete.

    Raises
    ------
    OSError
        The disk is full, or the folder is read-only.
    """
    unfinished = folder.with_name(UNFINISHED)
    for left in (unfinished, folder):  # by a run that was killed before it had a record
        shutil.rmtree(left, ignore_errors=True)
    make_folder(unfinished)
    remaining = iter(units)
    number = 0
    writer: pq.ParquetWriter | None = None
    try:
        while part := list(islice(remaining, per_part)):
            if number % (per_part * _PARTS_PER_FILE) == 0:
                if writer is not None:
                    writer.close()
                writer = pq.ParquetWriter(_file(unfinished, number, per_part), _SCHEMA)
            numbers = range(number, number + len(part))
            assert writer is not None  # noqa: S101 (the first part opens it)
            writer.write_table(pa.table([numbers, [unit.to_json() for unit in part]], schema=_SCHEMA))
            number += len(part)
    finally:
        if writer is not None:
            writer.close()
    os.replace(unfinished, folder)
    return number


def read_inputs(folder: Path, start: int, per_part: int) -> Iterator[pa.Table]:
    """Yield the inputs of one part, which begin at the number ``start``, as a table."""
    with pq.ParquetFile(_file(folder, start, per_part)) as file:
        yield file.read_row_group(start // per_part % _PARTS_PER_FILE)


def _file(folder: Path, number: int, per_part: int) -> Path:
    return folder / f"part-{number // (per_part * _PARTS_PER_FILE):06d}.parquet"


def _read_parts(folder: Path, starts: range, per_part: int, finished: NDArray[np.int64]) -> Iterator[pa.Table]:
    table = pa.concat_tables(table for start in starts for table in read_inputs(folder, start, per_part))
    yield table.filter(np.isin(table[INPUT].to_numpy(), finished, invert=True)) if len(finished) else table


class Inputs(Datasource):  # type: ignore[misc]  # mypy does not read Ray
    """The list of inputs as a source of Ray Data, with one task for one or several parts (row groups).

    Parameters
    ----------
    finished
        Numbers of the inputs to leave out, in order.
    """

    def __init__(self, folder: Path, count: int, per_part: int, parts: int, finished: NDArray[np.int64]) -> None:
        super().__init__()
        self._folder, self._count, self._per_part = folder, count - len(finished), per_part
        self._tasks: list[tuple[range, int, NDArray[np.int64]]] = []
        for start in range(0, count, parts * per_part):
            end = min(start + parts * per_part, count)
            left_out = finished[slice(*np.searchsorted(finished, [start, end]))]
            if rows := end - start - len(left_out):
                self._tasks.append((range(start, end, per_part), rows, left_out))

    @property
    def tasks(self) -> int:
        """The number of tasks."""
        return len(self._tasks)

    def estimate_inmemory_data_size(self) -> int:
        """Return about how many bytes all inputs take."""
        return 200 * self._count

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """Return the tasks, however many are asked for."""
        tasks = []
        for starts, rows, left_out in self._tasks:
            metadata = BlockMetadata(num_rows=rows, size_bytes=200 * rows, input_files=None, exec_stats=None)
            read = partial(_read_parts, self._folder, starts, self._per_part, left_out)
            tasks.append(ReadTask(read, metadata, schema=_SCHEMA))
        return tasks
