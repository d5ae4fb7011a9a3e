"""Kill the node and its archive while series arrive, then check that nothing is lost and nothing is doubled.

``python -m benchmarks.node.campaign --instances 2000 --kills 20 --archive-kills 5`` is the acceptance run; the tests
run a smaller one. Every acknowledged instance must be in the spool once, and every series must have exactly one report
in the archive.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from benchmarks.node.peers import (
    NodeProcess,
    Orthanc,
    instance,
    make_bundle,
    send_until_acknowledged,
    wait_for,
)
from mri_edge.services.dicom.spool import short_hash

SLICES = 20  # of each series


def faults(node: NodeProcess, orthanc: Orthanc, acknowledged: list[str], series: list[str]) -> list[str]:
    """Return everything that is wrong after the last run."""
    found = []
    stored = Counter(path.name.partition("-")[0] for path in node.files())
    found += [f"instance {uid}: acknowledged, and lost" for uid in acknowledged if not stored[short_hash(uid)]]
    found += [f"instance {name}: {number} copies" for name, number in stored.items() if number > 1]
    reports = Counter(orthanc.reported_series())
    found += [f"series {uid}: {reports[uid]} reports" for uid in series if reports[uid] != 1]
    found += [f"series {uid}: reported, and never sent" for uid in reports if uid not in series]
    return found


def kill_now_and_then(
    target: NodeProcess | Orthanc, kills: int, rng: random.Random, progress: list[str], total: int
) -> None:
    """Kill a program at random points of the progress of a sender, and start it again each time."""
    for point in sorted(rng.sample(range(1, total), kills)):
        wait_for(lambda point=point: len(progress) >= point, "the sender makes progress", 600)
        time.sleep(rng.uniform(0, 0.5))
        target.end(signal.SIGKILL)
        time.sleep(rng.uniform(0, 0.5))
        target.start()


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if nothing is lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--archive-kills", type=int, default=1)
    parser.add_argument("--senders", type=int, default=2)
    parser.add_argument("--settle", type=float, default=8.0, help="longer than a restart, or series are cut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", action="store_true")
    parser.add_argument("--size", type=int, default=128, help="rows and columns of an instance")
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = make_bundle(root / "bundle")
        node = NodeProcess(root, bundle, "--settle", options.settle)
        orthanc = Orthanc(root / "archive", node.port)
        node.options += ["--send-to", orthanc.address, *(["--commit"] if options.commit else [])]
        orthanc.start()
        node.start()
        acknowledged: list[str] = []
        series = list(range(options.instances // SLICES))
        senders = [
            threading.Thread(
                target=send_until_acknowledged,
                args=(
                    node.port,
                    (
                        instance(number, slice_number, size=options.size)
                        for number in series[first :: options.senders]
                        for slice_number in range(SLICES)
                    ),
                    acknowledged.append,
                ),
            )
            for first in range(options.senders)
        ]
        killers = [
            threading.Thread(target=kill_now_and_then, args=(target, kills, rng, acknowledged, options.instances))
            for target, kills in ((node, options.kills), (orthanc, options.archive_kills))
        ]
        for thread in (*senders, *killers):
            thread.start()
        for thread in (*senders, *killers):
            thread.join()
        uids = [f"2.25.2{number:04d}" for number in series]
        try:
            wait_for(lambda: set(uids) <= set(orthanc.reported_series()), "every series is reported", 300)
        except TimeoutError as error:
            print(error)
        time.sleep(options.settle + 2)  # a second report of a series would come now
        found = faults(node, orthanc, acknowledged, uids)
        code = node.end()
        orthanc.end()
        if found or code:
            print(node.log.read_text()[-5000:])
    print(f"{len(acknowledged)} instances acknowledged, {len(series)} series, {options.kills} kills of the node and")
    print(f"{options.archive_kills} of the archive in {time.monotonic() - start:.0f} s; faults: {len(found)}")
    print(*found[:20], sep="\n", end="\n" if found else "")
    return int(bool(found) or code != 0)


if __name__ == "__main__":
    sys.exit(main())
