"""Kill ``mri-edge watch`` at random moments while scans arrive, then check that each scan has exactly one result.

The acceptance run is ``python scripts/kill_watch.py --scans 2000 --kills 20``; tests run a smaller one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

PROGRAM = Path(sys.executable).with_name("mri-edge")


def deliver(folder: Path, count: int, rng: random.Random, *, max_waiting: int = 1_000_000) -> None:
    """Write ``count`` different scans as senders do: half of them in pieces, the others with a rename.

    It pauses while more than ``max_waiting`` files wait in the folder.
    """
    pixels = np.random.default_rng(rng.randrange(1 << 32))
    for number in range(count):
        while number % 100 == 0 and count_of(folder) > max_waiting:
            time.sleep(0.1)
        path = folder / f"{number:05d}.png"
        temporary = path.with_suffix(".part")
        size = (rng.randrange(20, 120), rng.randrange(20, 120))
        Image.fromarray(pixels.integers(0, 256, size, np.uint8)).save(temporary, "PNG")
        if number % 2:
            temporary.rename(path)
            continue
        content = temporary.read_bytes()
        with open(path, "wb", buffering=0) as file:
            for start in range(0, len(content), 1000):
                file.write(content[start : start + 1000])
                time.sleep(0.0005)
        temporary.unlink()


def count_of(folder: Path) -> int:
    """Return the number of files in a folder. Temporary ones, which begin with a dot, do not count."""
    return sum(not path.name.startswith(".") for path in folder.iterdir()) if folder.is_dir() else 0


def faults(incoming: Path, out: Path, count: int) -> list[str]:
    """Return everything that is wrong after the last run."""
    names = [f"{number:05d}.png" for number in range(count)]
    found = []
    for folder, wanted in ((out / "done", names), (out / "results", [f"{name}.json" for name in names])):
        existing = {path.name for path in folder.iterdir()}
        found += [f"{folder.name}/{name}: missing" for name in sorted(set(wanted) - existing)]
        found += [f"{folder.name}/{name}: unexpected" for name in sorted(existing - set(wanted))]
    found += [f"failed/{path.name}" for path in (out / "failed").iterdir()]
    found += [f"{path.name}: left behind" for path in incoming.iterdir() if not path.name.startswith(".")]
    for name in names if not found else ():
        record = json.loads((out / "results" / f"{name}.json").read_text())
        content = (out / "done" / name).read_bytes()
        if record["sha256"] != hashlib.sha256(content).hexdigest() or Path(record["file"]).name != name:
            found.append(f"results/{name}.json: belongs to another scan")
    return found


def main() -> int:
    """Return 0 if every scan has exactly one result, and enough kills hit a program that was working."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="vgg16")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        incoming, out = Path(folder, "in"), Path(folder, "out")
        incoming.mkdir()
        command = [PROGRAM, "watch", incoming, "--out", out, "--model", options.model, "--threads", "1"]
        command += ["--every", "0.05", "--settle", "0.1"]
        sender = threading.Thread(target=deliver, args=(incoming, options.scans, rng))
        sender.start()
        results, done = out / "results", out / "done"
        kills = idle = between = 0
        # Kill after a random number of results, and up to 30 ms later.
        for results_before_kill in sorted(rng.sample(range(1, options.scans), options.kills)):
            limit = max(results_before_kill, count_of(results) + 1)
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while process.poll() is None and count_of(results) < limit:
                    time.sleep(0.003)
                time.sleep(rng.uniform(0, 0.03))
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
            idle += not any(path.suffix == ".png" for path in incoming.iterdir())
            between += count_of(results) > count_of(done)  # the result was written, the scan not yet moved
        sender.join()
        last = subprocess.run([*command, "--once"], stdout=subprocess.PIPE, check=False)
        found = faults(incoming, out, options.scans)
        print(f"{options.scans} scans, {kills} of {options.kills} runs killed:")
        print(f"{between} between a result and its move, {idle} with nothing left to do")
        print(f"last run: exit code {last.returncode}; faults: {len(found)}")
        print(*found[:20], sep="\n", end="\n" if found else "")
        return int(bool(found) or last.returncode != 0 or kills - idle < options.kills * 0.8)


if __name__ == "__main__":
    sys.exit(main())
