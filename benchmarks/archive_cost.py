"""Measure what `mri-edge archive` costs: CPU time by process, bytes and memory, beside `predict -r` on the same scans.

    python -m benchmarks.archive_cost --sizes 1000 10000 --rounds 5
    python -m benchmarks.archive_cost --sizes 4000 --nodes     # one node of two cores, and two nodes of one
    python -m benchmarks.archive_cost --plan 1000000 10000000  # what the driver keeps before anything runs

CPU time is that of all processes, so that other programs on the machine change it little. It is divided by the
scans of the larger size less those of the smaller one: that leaves out what starting takes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .archive_campaign import start_driver
from .archive_slices import make_slices
from .processes import descendants

PROGRAM = str(Path(sys.executable).with_name("mri-edge"))
_SAMPLE_S = 0.25
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Cost:
    """CPU seconds and the largest private memory in MB by role, the wall time, and bytes that were written."""

    scans: int
    seconds: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    memory_mb: dict[str, float] = field(default_factory=dict)
    total_mb: float = 0.0
    bytes_written: dict[str, int] = field(default_factory=dict)


class _Sampler(threading.Thread):
    """Reads the processes below one, and those of a cluster, while the program runs."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root = root
        self._cpu: dict[int, float] = {}
        self._roles: dict[int, str] = {}
        self._memory: dict[str, float] = defaultdict(float)
        self._total = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        memory: dict[str, float] = defaultdict(float)
        for number in descendants(self._root):
            try:
                stat = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
                title = Path(f"/proc/{number}/cmdline").read_text()
                status = Path(f"/proc/{number}/status").read_text()
            except OSError:
                continue
            role = self._roles[number] = _role(number == self._root, title, self._roles.get(number))
            self._cpu[number] = (int(stat[11]) + int(stat[12])) / _TICK
            memory[role] += (
                sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1e3
            )
        for role, value in memory.items():
            self._memory[role] = max(self._memory[role], value)
        self._total = max(self._total, sum(memory.values()))

    def end(self, cost: Cost) -> None:
        self._ended.set()
        self.join()
        for number, seconds in self._cpu.items():
            role = self._roles[number]
            cost.cpu[role] = round(cost.cpu.get(role, 0.0) + seconds, 2)
        cost.memory_mb = {role: round(value) for role, value in self._memory.items()}
        cost.total_mb = round(self._total)


def _role(is_root: bool, title: str, before: str | None) -> str:
    if is_root:
        return "driver"
    if "MapWorker" in title:
        return "read and classify"
    if title.startswith("ray::") and ("ReadInputs" in title or "Write" in title):
        return "list and write"
    return before or "ray"


def measure(command: list[str], scans: int, out: Path | None = None) -> Cost:
    """Run a command and return what it cost."""
    cost = Cost(scans)
    start = time.monotonic()
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        sampler = _Sampler(process.pid)
        sampler.start()
        code = process.wait()
    cost.seconds = round(time.monotonic() - start, 2)
    sampler.end(cost)
    if code:
        raise SystemExit(f"archive_cost: {command[1]} ended with code {code}")
    if out is not None:
        for name in ("inputs", "checkpoint", "results"):
            cost.bytes_written[name] = sum(path.stat().st_size for path in (out / name).rglob("*") if path.is_file())
    return cost


def compare(sizes: list[int], folder: Path, model: str, rounds: int) -> dict[str, Any]:
    """Measure both commands at each size, in turn, and return the costs and those of one more scan.

    The order of the commands changes with every round, because the speed of a shared machine drifts.
    """
    sources = {scans: folder / f"slices-{scans}" for scans in sizes}
    for scans, source in sources.items():
        make_slices(scans, source)
    found: dict[str, list[list[Cost]]] = {"predict": [], "archive": []}
    for number in range(rounds):
        for costs in found.values():
            costs.append([])
        for scans, source in sources.items():
            out = folder / f"out-{number}-{scans}"
            commands = {
                "predict": [PROGRAM, "predict", "-r", "--json", "--model", model, str(source)],
                "archive": [PROGRAM, "archive", "--model", model, str(source), "--out", str(out)],
            }
            for name in sorted(commands, reverse=number % 2 == 0):
                cost = measure(commands[name], scans, out if name == "archive" else None)
                found[name][-1].append(cost)
                print(name, json.dumps(asdict(cost)), file=sys.stderr, flush=True)
            shutil.rmtree(out)
    result: dict[str, Any] = {name: [list(map(asdict, costs)) for costs in all_] for name, all_ in found.items()}
    if len(sizes) > 1:
        of_one = {name: [_marginal(costs[0], costs[-1]) for costs in all_] for name, all_ in found.items()}
        result["ms_per_scan"] = {name: _medians(costs) for name, costs in of_one.items()}
        rates = [
            sum(predict.values()) / sum(archive.values())
            for predict, archive in zip(of_one["predict"], of_one["archive"], strict=True)
        ]
        result["rate_for_the_same_cpu_time"] = {
            "median": round(statistics.median(rates), 3),
            "rounds": [round(rate, 3) for rate in rates],
        }
    return result


def _marginal(small: Cost, large: Cost) -> dict[str, float]:
    """Return CPU milliseconds of one more scan by role."""
    more = large.scans - small.scans
    return {role: 1e3 * (value - small.cpu.get(role, 0.0)) / more for role, value in large.cpu.items()}


def _medians(costs: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of every role."""
    return {role: round(statistics.median(cost.get(role, 0.0) for cost in costs), 3) for role in costs[0]}


def nodes(scans: int, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return scans a second, without the start, on one node of two cores and on two nodes of one, in turn."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    source = folder / "slices"
    make_slices(scans, source)
    found: dict[str, list[float]] = {"1 node of 2 cores": [], "2 nodes of 1 core": []}
    for number in range(rounds):
        for name, cores in (("1 node of 2 cores", [2]), ("2 nodes of 1 core", [1, 1])):
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
            try:
                for count in cores:
                    cluster.add_node(num_cpus=count)
                seconds = []
                for part in (scans // 8, scans):  # the difference leaves out the start
                    chosen = folder / f"{number}-{len(cores)}-{part}.txt"
                    chosen.write_text("\n".join(sorted(map(str, source.rglob("*.jpg")))[:part]))
                    start = time.monotonic()
                    driver = start_driver(Path(f"@{chosen}"), chosen.with_suffix(""), cluster.address, 256, 4096)
                    if driver.wait(1200):
                        raise SystemExit("archive_cost: the run on the cluster failed")
                    seconds.append(time.monotonic() - start)
                found[name].append(round((scans - scans // 8) / (seconds[1] - seconds[0]), 1))
            finally:
                cluster.shutdown()
            print(name, found[name], flush=True)
    return found


def plan(sizes: list[int]) -> list[dict[str, float]]:
    """Return the memory and the time that the driver takes for the list of tasks, by number of inputs."""
    from mri_edge.services.archive.cluster import import_ray

    import_ray(None)
    from mri_edge.services.archive.inputs import Inputs

    found = []
    for inputs in sizes:
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        tasks = Inputs(Path("inputs"), inputs, 512, 4, np.zeros(0, np.int64)).get_read_tasks(1)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found.append(
            {
                "inputs": inputs,
                "tasks": len(tasks),
                "cpu_s": round(time.process_time() - start, 2),
                "mb": round((after - before) / 1024, 1),
            }
        )
        del tasks
    return found


def main() -> None:
    """Measure what the command line says, and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--model", default="lite")
    parser.add_argument("--nodes", action="store_true", help="compare one node of two cores with two nodes of one")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each subject, in turn")
    parser.add_argument("--plan", type=int, nargs="+", help="only measure the list of tasks for so many inputs")
    options = parser.parse_args()
    if options.plan:
        print(json.dumps(plan(options.plan), indent=2))
        return
    with tempfile.TemporaryDirectory(prefix="archive-cost-") as folder:
        if options.nodes:
            print(json.dumps(nodes(options.sizes[-1], Path(folder), options.rounds), indent=2))
        else:
            print(json.dumps(compare(options.sizes, Path(folder), options.model, options.rounds), indent=2))


if __name__ == "__main__":
    main()
