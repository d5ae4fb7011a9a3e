"""Read scans in batches and resize their frames: everything that happens before the network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from queue import Empty, Full, Queue
from threading import Event, Thread
from time import monotonic, perf_counter
from typing import TypeVar

from mri_edge.errors import InputError
from mri_edge.records import dataclass
from mri_edge.scans import checks, readers
from mri_edge.scans.checks import ResultWarning
from mri_edge.scans.files import out_of_memory
from mri_edge.scans.frame import Frame, Pixels, Source, Unread, in_fewest_channels, source_name
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.resize import resize_bilinear

from .prediction import Failure

Read = TypeVar("Read")

_MAX_WAITING_BYTES = 4 << 20  # of decoded frames that a thread collects to resize them together
_MAX_PIECE_BYTES = 8 << 20  # of prepared frames, 170 of 128 x 128 pixels, that wait until the engine takes them


@dataclass(frozen=True)
class Decoded:
    """A frame and the milliseconds that reading it took."""

    frame: Frame
    decode_ms: float


@dataclass(frozen=True)
class Prepared:
    """A frame resized to the network's input, uint8 (h, w, 3), and its warnings.

    ``resize_ms`` is the time of all frames that were resized together, divided by their number. ``original`` holds the
    section of the frame that was resized, or None if it is not kept.
    """

    frame: Frame
    warnings: tuple[ResultWarning, ...]
    decode_ms: float
    resize_ms: float
    original: Pixels | None

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels."""
        return self.frame.pixels.nbytes + (0 if self.original is None else self.original.nbytes)


def decode(source: Source, reading: ReadOptions) -> Iterator[Decoded]:
    """Read the frames of one scan. Raises InputError."""
    for frame, decode_ms in _with_time(readers.read, source, reading):
        yield Decoded(frame, decode_ms)


def _with_time(
    read: Callable[[Source, ReadOptions], Iterable[Read]], source: Source, reading: ReadOptions
) -> Iterator[tuple[Read, float]]:
    """Yield what ``read`` gives, each with the milliseconds that it took."""
    start = perf_counter()
    for frame in read(source, reading):
        yield frame, (perf_counter() - start) * 1e3
        start = perf_counter()


def prepare(frames: Sequence[Decoded], preprocessing: Preprocessing, *, keep_pixels: bool) -> list[Prepared]:
    """Resize and check frames together: threads that take many short NumPy steps slow each other down."""
    if not frames:
        return []
    start = perf_counter()
    pictures = [in_fewest_channels(decoded.frame.pixels) for decoded in frames]
    sections = [preprocessing.section(pixels) for pixels in pictures]
    resized = preprocessing.resize_sections(sections)
    resize_ms = (perf_counter() - start) * 1e3 / len(frames)
    # The margin around a head is not in its section, and it shows an inverted picture best.
    whole = resized if preprocessing.framing == "picture" else resize_bilinear(pictures, checks.SIDE, checks.SIDE)
    warnings = checks.warnings_for([pixels.shape[:2] for pixels in pictures], whole)
    return [
        Prepared(
            replace(decoded.frame, pixels=row),
            decoded.frame.warnings + tuple(found),
            decoded.decode_ms,
            resize_ms,
            section if keep_pixels else None,
        )
        for decoded, section, row, found in zip(frames, sections, resized, warnings, strict=True)
    ]


def prepare_in_pieces(
    sources: Iterable[Source | InputError], preprocessing: Preprocessing, reading: ReadOptions, *, keep_pixels: bool
) -> Iterator[list[Prepared | Failure | None]]:
    """Read and prepare every frame of some scans in order. A scan or frame that cannot be read becomes a Failure.

    The lists take some MiB, because a scan may have any number of frames. None follows the last frame of each scan.
    """
    piece: list[Prepared | Failure | None] = []
    waiting: list[Decoded | Failure | None] = []
    waiting_bytes = 0
    for source in sources:
        for result in chain(decode_or_fail(source, reading), (None,)):
            waiting.append(result)
            waiting_bytes += result.frame.pixels.nbytes if isinstance(result, Decoded) else 0
            if waiting_bytes > _MAX_WAITING_BYTES:
                piece += _prepare_waiting(waiting, preprocessing, keep_pixels)
                waiting, waiting_bytes = [], 0
                if sum(prepared.nbytes for prepared in piece if isinstance(prepared, Prepared)) > _MAX_PIECE_BYTES:
                    yield piece
                    piece = []
    yield piece + _prepare_waiting(waiting, preprocessing, keep_pixels)


def decode_or_fail(source: Source | InputError, reading: ReadOptions) -> Iterator[Decoded | Failure]:
    """Read the frames of one scan. Each frame that cannot be read becomes a Failure.

    A Failure of a single frame (``frames`` is 1) is about the whole scan.
    """
    if isinstance(source, InputError):
        yield Failure(source.source, source)
        return
    name, index, count = None, 0, 1
    try:
        name = source_name(source)
        for frame, decode_ms in _with_time(readers.read_each, source, reading):
            if isinstance(frame, Unread):
                yield Failure(name, frame.error, frame.index, frame.count)
            else:
                yield Decoded(frame, decode_ms)
            index, count = frame.index + 1, frame.count
    except InputError as error:
        yield Failure(name, error, index, count)
        yield from failures_after(error, name, index, count)


def failures_after(error: InputError, name: str | None, index: int, count: int) -> Iterator[Failure]:
    """Yield a Failure for each frame after the one of this index, with which reading ended."""
    for later in range(index + 1, count):
        problem = f"{name or 'scan'}: frame {later} was not read, because frame {index} cannot be read"
        yield Failure(name, InputError(problem, error.hint, code=error.code), later, count)


def _prepare_waiting(
    waiting: list[Decoded | Failure | None], preprocessing: Preprocessing, keep_pixels: bool
) -> list[Prepared | Failure | None]:
    frames = [decoded for decoded in waiting if isinstance(decoded, Decoded)]
    results: list[Prepared | Failure]
    try:
        results = [*prepare(frames, preprocessing, keep_pixels=keep_pixels)]
    except MemoryError:  # prepare them one by one, so that only frames without enough memory fail
        results = [_prepare_or_fail(decoded, preprocessing, keep_pixels) for decoded in frames]
    remaining = iter(results)
    return [next(remaining) if isinstance(decoded, Decoded) else decoded for decoded in waiting]


def _prepare_or_fail(decoded: Decoded, preprocessing: Preprocessing, keep_pixels: bool) -> Prepared | Failure:
    try:
        return prepare([decoded], preprocessing, keep_pixels=keep_pixels)[0]
    except MemoryError as error:
        frame = decoded.frame
        failure = out_of_memory(frame.source or "scan")
        failure.__cause__ = error
        return Failure(frame.source, failure, frame.index, frame.count)


Item = TypeVar("Item")

_CHECK_S = 0.5  # how often a thread that waits checks whether it should stop


def batched(items: Iterable[Item], size: int, max_wait: float | None = None) -> Iterator[list[Item]]:
    """Yield lists of ``size`` items in order. A shorter list, possibly empty, means that no item is waiting now.

    Parameters
    ----------
    max_wait
        Seconds that an item waits for others to complete its batch. Items are then read in a thread of their own.
        None: every batch but the last is complete, and items are read in the caller's thread.

    An exception from ``items`` is raised after the items before it.
    """
    return _complete(items, size) if max_wait is None else _timed(items, size, max_wait)


def _complete(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        yield batch
        raise
    yield batch


class _End:
    """Marks the end of the queue; ``error`` is the exception that ended the stream early."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def _timed(items: Iterable[Item], size: int, max_wait: float) -> Iterator[list[Item]]:
    queue: Queue[Item | _End] = Queue(maxsize=size)
    stopped = Event()
    # It is a daemon, because it may block forever on standard input, which must not keep the program from ending.
    Thread(target=_fill, args=(items, queue, stopped), name="read sources", daemon=True).start()
    try:
        first_wait, end = max_wait, None
        while end is None:
            batch, end = _next_batch(queue, size, first_wait, max_wait)
            first_wait = max_wait if batch else _CHECK_S  # after an empty batch no scan waits for its answer
            yield batch
        if end.error is not None:
            raise end.error
    finally:
        stopped.set()


def _next_batch(
    queue: Queue[Item | _End], size: int, first_wait: float, max_wait: float
) -> tuple[list[Item], _End | None]:
    """Take up to ``size`` items, waiting ``first_wait`` for the first one and ``max_wait`` for all others."""
    batch: list[Item] = []
    deadline = monotonic() + first_wait
    while len(batch) < size:
        try:
            item = queue.get(timeout=max(0, deadline - monotonic()))
        except Empty:
            break
        if isinstance(item, _End):
            return batch, item
        if not batch:
            deadline = monotonic() + max_wait
        batch.append(item)
    return batch, None


def _fill(items: Iterable[Item], queue: Queue[Item | _End], stopped: Event) -> None:
    end = _End()
    try:
        for item in items:
            _put(queue, item, stopped)
            if stopped.is_set():
                return
    except BaseException as error:  # noqa: BLE001 (raised in the thread that reads the queue, which waits for an end)
        end = _End(error)
    _put(queue, end, stopped)


def _put(queue: Queue[Item | _End], item: Item | _End, stopped: Event) -> None:
    while not stopped.is_set():
        try:
            queue.put(item, timeout=_CHECK_S)
        except Full:
            continue
        return
