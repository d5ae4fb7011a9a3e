"""Measure how much the resident memory of ``mri-edge watch`` grows over thousands of scans.

``python scripts/watch_memory.py --scans 10000`` needs Linux. It exits with 1 if memory grows by more than 5% from the
first tenth to the end.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from kill_watch import PROGRAM, count_of, deliver

_ALLOWED = 1.05  # what the allocator varies by; a leak of one small image a scan would double the memory


def resident_mb(process: int) -> float:
    """Return the resident memory of a process in MB (proc(5), VmRSS)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> int:
    """Deliver scans, print the memory after each tenth, and return 1 if it grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--model", default="vgg16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        incoming, out = Path(folder, "in"), Path(folder, "out")
        incoming.mkdir()
        command = [PROGRAM, "watch", incoming, "--out", out, "--model", options.model, "--threads", "1"]
        # Few scans wait at a time: a long list of them takes memory that is later freed, which would hide a leak.
        delivery = partial(deliver, incoming, options.scans, random.Random(0), max_waiting=100)
        sender = threading.Thread(target=delivery, daemon=True)
        sender.start()
        start = time.monotonic()
        memory_mb: list[float] = []
        with subprocess.Popen([*command, "--settle", "0.2"], stdout=subprocess.DEVNULL) as process:
            for tenth in range(1, 11):
                count = options.scans * tenth // 10
                while process.poll() is None and count_of(out / "done") < count:
                    time.sleep(0.05)
                if process.poll() is not None:
                    print("watch ended early")
                    return 1
                memory_mb.append(resident_mb(process.pid))
                print(f"{count:>6} scans  {memory_mb[-1]:6.1f} MB  {time.monotonic() - start:5.0f} s")
            process.terminate()
        sender.join()
    print(f"end / first tenth: {memory_mb[-1] / memory_mb[0]:.3f}")
    return int(memory_mb[-1] > _ALLOWED * memory_mb[0])


if __name__ == "__main__":
    sys.exit(main())
