"""Change valid files at random, read them, and check the limits of time and memory. Used by the fuzzers here.

Each mutation has a seed of its own, which makes the same file again.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import random
import signal
import struct
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mri_edge.errors import InputError

MAX_CPU_S, MAX_PEAK_MB = 5.0, 500.0
_HANGS_S = 60  # seconds after which one file counts as hanging
_MAX_SHOWN = 3  # seeds of each kind of fault
_TOGETHER = 1000  # mutations in one process

_NUMBERS = (0, 1, 2, 255, 256, 4095, 7999, 8000, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def change(content: bytes, rng: random.Random) -> bytes:
    """Change a file in a few places: bytes, numbers of 2 and 4 bytes, pieces repeated, removed or moved."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        reach = min(len(changed), rng.choice((32, 64, 300, 10**9)))
        # The directory of a TIFF may be at the end.
        place = len(changed) - 1 - rng.randrange(reach) if rng.random() < 0.2 else rng.randrange(reach)
        action = rng.randrange(7)
        if action == 0:
            changed[place] = rng.randrange(256)
        elif action == 1:
            changed[place] ^= 1 << rng.randrange(8)
        elif action in (2, 3):
            order, (layout, size) = rng.choice("<>"), rng.choice((("H", 2), ("I", 4)))
            number = rng.choice(_NUMBERS) % 256**size
            changed[place : place + size] = struct.pack(order + layout, number)
        elif action == 4:
            piece = changed[place : place + rng.randrange(1, 64)]
            changed[place:place] = piece * rng.choice((1, 2, 100, 5000))
        elif action == 5:
            del changed[place : place + rng.choice((1, 4, 12, 100))]
        elif rng.random() < 0.3:
            del changed[place:]
        if not changed:
            return b"\0"
    return bytes(changed)


@dataclass
class Outcome:
    """The results of a run: the worst figures, each with its seed, and how often each answer occurred."""

    cpu_s: tuple[float, int] = (0.0, -1)
    peak_mb: tuple[float, int] = (0.0, -1)
    answers: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Add the results of another run."""
        self.cpu_s, self.peak_mb = max(self.cpu_s, other.cpu_s), max(self.peak_mb, other.peak_mb)
        self.answers.update(other.answers)
        self.broken += other.broken


def run(mutation: Callable[[int], bytes], read: Callable[[bytes], object], count: int, first: int = 0) -> Outcome:
    """Read ``count`` mutations in this process. ``read`` may raise InputError; any other exception is a fault."""
    outcome = Outcome()
    for seed in range(first, first + count):
        _try(mutation, read, seed, outcome)
    return outcome


def run_apart(mutation: Callable[[int], bytes], read: Callable[[bytes], object], count: int, first: int = 0) -> Outcome:
    """As ``run``, in processes whose crash or hanging is a fault as well. For POSIX systems."""
    context = multiprocessing.get_context("fork")
    mutation(first)  # make the valid files here, once for all processes
    total, seed, end = Outcome(), first, first + count
    while seed < end:
        current = context.Value("q", seed)
        receiver, sender = context.Pipe(duplex=False)
        until = min(seed + _TOGETHER, end)
        process = context.Process(target=_run_part, args=(mutation, read, seed, until, current, sender))
        process.start()
        sender.close()
        parts = []
        try:
            while True:
                parts.append(receiver.recv())
        except EOFError:
            process.join()
        for part in parts:
            total.add(part)
        if process.exitcode:
            total.broken.append(f"seed {current.value}: the process ended with {process.exitcode}")
            until = current.value + 1
        seed = until
    return total


def _run_part(mutation, read, seed, until, current, sender) -> None:  # type: ignore[no-untyped-def]
    faulthandler.enable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("always")
    while seed < until:
        current.value = seed
        signal.alarm(_HANGS_S)
        outcome = Outcome()
        # A user would see the warning of a library on stderr, without the name of the scan.
        warnings.showwarning = lambda message, *_, outcome=outcome, seed=seed: outcome.broken.append(
            f"seed {seed}: warning: {message}"
        )
        _try(mutation, read, seed, outcome)
        sender.send(outcome)
        seed += 1
    signal.alarm(0)


def _try(mutation: Callable[[int], bytes], read: Callable[[bytes], object], seed: int, outcome: Outcome) -> None:
    content = mutation(seed)
    before, start = _memory("VmRSS"), time.process_time()
    _forget_peak()
    try:
        read(content)
        outcome.answers["pixels"] += 1
    except InputError as error:
        outcome.answers[error.code] += 1
    except Exception as error:  # noqa: BLE001 (anything else is a fault, whatever it is)
        outcome.broken.append(f"seed {seed}: {type(error).__name__}: {error}")
    cpu, peak = time.process_time() - start, (_memory("VmHWM") - before) / 1e6
    outcome.cpu_s = max(outcome.cpu_s, (cpu, seed))
    outcome.peak_mb = max(outcome.peak_mb, (peak, seed))
    if cpu > MAX_CPU_S or peak > MAX_PEAK_MB:
        outcome.broken.append(f"seed {seed}: {cpu:.1f} s, {peak:.0f} MB")


def _memory(name: str) -> int:
    status = Path("/proc/self/status")
    return int(status.read_text().partition(f"{name}:")[2].split()[0]) * 1024 if status.exists() else 0


def _forget_peak() -> None:
    """Reset the peak memory where the system can, on Linux: see proc(5)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def report(outcome: Outcome) -> None:
    """Print the results, and exit with 1 if a limit was broken."""
    print(f"{sum(outcome.answers.values())} mutations: {dict(outcome.answers)}")
    print(f"largest CPU {outcome.cpu_s[0]:.2f} s (seed {outcome.cpu_s[1]})")
    print(f"largest rise of memory {outcome.peak_mb[0]:.0f} MB (seed {outcome.peak_mb[1]})")
    kinds: dict[str, list[str]] = {}
    for fault in outcome.broken:
        seed, _, what = fault.partition(": ")
        kinds.setdefault(what, []).append(seed)
    for what, seeds in kinds.items():
        print(f"{len(seeds)} x {what} ({', '.join(seeds[:_MAX_SHOWN])})")
    sys.exit(bool(outcome.broken))
