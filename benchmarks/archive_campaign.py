"""Kill workers, nodes and the driver of ``mri-edge archive`` at random, and check that every input has one row.

    python -m benchmarks.archive_campaign --slices 2000 --kills 6

A cluster of several nodes runs on this machine. Each kill is followed by a new node or a new driver. At the end the
rows are compared with the answers of the classifier in this process.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

from .archive_slices import make_slices

KINDS = ("worker", "node", "driver")
_MODEL = "small"
_DRIVER = f"""
import sys
from pathlib import Path
from mri_edge.inference.selection import RunOptions
from mri_edge.services.archive.job import Archive, run_archive
slices, out, address, per_part, per_file = sys.argv[1:]
archive = Archive(
    (slices,), Path(out), {_MODEL!r}, RunOptions(), address=address, per_part=int(per_part), per_file=int(per_file)
)
run_archive(archive, lambda message: print(message, file=sys.stderr, flush=True))
"""
_WAIT_S = 600.0
# Slices of a part of the list, and rows of a file of results. Short runs have smaller ones than the product, so that
# there are many; in a long run, writing so many files would take longer than classifying.
_SIZES_OF_SHORT, _SIZES = (32, 64), (128, 1024)
_SHORT = 20_000


@dataclass
class Report:
    """What a campaign found. It succeeded if ``rows == slices`` and ``duplicates == missing == different == 0``."""

    slices: int
    rows: int = 0
    duplicates: int = 0
    missing: int = 0
    different: int = 0
    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)

    @property
    def succeeded(self) -> bool:
        """Whether every input has one row, equal to the answer of the classifier."""
        return self.rows == self.slices and not (self.duplicates or self.missing or self.different)


def rows_of(out: Path) -> dict[int, list[Any]]:
    """Return the rows of each input, without times."""
    return _by_input(pads.dataset(str(out / "results"), partitioning="hive").to_table())


def expected_rows(slices: Path) -> dict[int, list[Any]]:
    """Return the rows that each input should have, as ``predict`` classifies it."""
    from mri_edge import Classifier
    from mri_edge.services.archive.schema import columns, table

    paths = sorted(map(str, slices.rglob("*.jpg")))
    with Classifier.load(_MODEL) as classifier:
        records = [result.to_dict() for result in classifier.predict_batches(paths)]
    return _by_input(table(enumerate(records), columns("slice")))


def _by_input(table: Any) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for row in table.select(["input", "file", "label", "probabilities", "code", "warnings"]).to_pylist():
        found.setdefault(row.pop("input"), []).append(row)
    return found


def start_driver(slices: Path, out: Path, address: str, per_part: int, per_file: int) -> subprocess.Popen[bytes]:
    """Start a run in a process of its own."""
    arguments = [str(slices), str(out), address, str(per_part), str(per_file)]
    return subprocess.Popen([sys.executable, "-c", _DRIVER, *arguments])


def campaign(
    folder: Path,
    slices: int,
    kinds: list[str],
    *,
    nodes: int = 2,
    seed: int = 0,
) -> Report:
    """Run one archive in ``folder`` with a kill of each of ``kinds``, in this order, at random times."""
    generator = random.Random(seed)
    source, killed = folder / "slices", folder / "killed"
    make_slices(slices, source)
    report = Report(slices)
    per_part, per_file = _SIZES_OF_SHORT if slices < _SHORT else _SIZES

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        workers = [cluster.add_node(num_cpus=1) for _ in range(nodes)]
        start = time.monotonic()
        driver = start_driver(source, killed, cluster.address, per_part, per_file)
        done = 0
        for kind in kinds:
            # Kill only after new results: otherwise the run might never get beyond its start.
            more = min(slices - done, generator.randint(1, max(1, slices // (len(kinds) + 1))))
            done = _await_rows(killed, driver, done + more)
            if driver.poll() is not None:
                break
            if kind == "driver":
                driver.send_signal(signal.SIGKILL)
                driver.wait()
                driver = start_driver(source, killed, cluster.address, per_part, per_file)
            elif kind == "node":
                number = generator.randrange(nodes)
                cluster.remove_node(workers[number], allow_graceful=False)
                workers[number] = cluster.add_node(num_cpus=1)
            else:
                raylets = {node.all_processes["raylet"][0].process.pid for node in workers}
                if not _kill_worker(raylets, driver, generator):
                    break
            report.kills[kind] += 1
            print(f"killed a {kind} after {done:,} results", file=sys.stderr, flush=True)
        _require(driver.wait(_WAIT_S) == 0, "the run failed after the last kill")
        report.seconds = time.monotonic() - start
    finally:
        if driver.poll() is None:
            driver.kill()
        cluster.shutdown()
    expected, found = expected_rows(source), rows_of(killed)
    report.rows = sum(map(len, found.values()))
    report.duplicates = sum(len(rows) > 1 for rows in found.values())
    report.missing = len(expected.keys() - found.keys())
    report.different = sum(rows != expected.get(number) for number, rows in found.items())
    return report


def _await_rows(out: Path, driver: subprocess.Popen[bytes], wanted: int) -> int:
    """Wait until so many inputs are committed or the run ends, and return how many are."""
    from mri_edge.services.archive.sink import finished_inputs

    found = 0
    deadline = time.monotonic() + _WAIT_S
    while found < wanted and driver.poll() is None:
        _require(time.monotonic() < deadline, f"{found} of {wanted} results after {_WAIT_S:.0f} s")
        time.sleep(0.2)
        try:
            found = len(finished_inputs(out))
        except OSError:  # a pending file was renamed meanwhile
            continue
    return found


def _kill_worker(raylets: set[int], driver: subprocess.Popen[bytes], generator: random.Random) -> bool:
    """Kill one of the workers as soon as there is one, and return whether there was one before the run ended."""
    while driver.poll() is None:
        if victims := _workers_of(raylets):
            try:
                os.kill(generator.choice(victims), signal.SIGKILL)
            except ProcessLookupError:  # it ended by itself meanwhile
                continue
            return True
        time.sleep(0.05)
    return False


def _workers_of(raylets: set[int]) -> list[int]:
    """Return the processes of the raylets that run tasks or actors. Others are idle, or end their node with them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                title = (entry / "cmdline").read_text()
            except OSError:  # it has ended
                continue
            if parent in raylets and title.startswith("ray::") and not any(name in title for name in ("IDLE", "Agent")):
                found.append(int(entry.name))
    return found


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise SystemExit(f"archive_campaign: {problem}")


def main() -> None:
    """Run a campaign of the size that the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(options.kills)]
    generator.shuffle(kinds)
    with tempfile.TemporaryDirectory(prefix="archive-campaign-") as folder:
        report = campaign(Path(folder), options.slices, kinds, nodes=options.nodes, seed=options.seed)
    print(report)
    raise SystemExit(0 if report.succeeded else 1)


if __name__ == "__main__":
    main()
