"""Compare the rate at which the node takes instances with that of a bare pynetdicom server, and watch its memory.

``python -m benchmarks.node.rate`` sends 131 KB instances with dcmtk's storescu to each server in turn, each in a
process of its own. The bare servers are the shortest handlers of ``evt.EVT_C_STORE`` that write the encoded data set:
``synced`` with the fsync of file and folder that the node makes before it acknowledges, ``unsynced`` without.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.node.peers import AET, NodeProcess, make_bundle, wait_for, write_series
from benchmarks.processes import free_port, resident_bytes

STORESCU = "/usr/bin/storescu"
BARE = """
import os, sys
from pynetdicom import AE, evt
port, folder, synced = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "synced"

def store(event):
    path = os.path.join(folder, event.request.AffectedSOPInstanceUID + ".dcm")
    with open(path + ".part", "wb") as file:
        file.write(event.encoded_dataset())
        file.flush()
        if synced:
            os.fsync(file.fileno())
    os.replace(path + ".part", path)
    if synced:
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return 0

ae = AE(ae_title="MRIEDGE")
ae.maximum_associations = 100
ae.add_supported_context("1.2.840.10008.1.1")
ae.add_supported_context("1.2.840.10008.5.1.4.1.1.4")
ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, store)])
"""


class Bare:
    """A bare pynetdicom server in a process of its own."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder / kind
        self.folder.mkdir()
        self.port = free_port()
        command = [sys.executable, "-c", BARE, str(self.port), str(self.folder), kind]
        self.process = subprocess.Popen(command)
        wait_for(lambda: not _echo(self.port), "the server answers")

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def _echo(port: int) -> int:
    command = [STORESCU.replace("storescu", "echoscu"), "-aec", AET, "127.0.0.1", str(port)]
    return subprocess.run(command, check=False, capture_output=True).returncode if _listens(port) else 1


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def send(port: int, paths: list[Path], associations: int = 1) -> float:
    """Send files over some associations at once, and return the seconds. Raises if any is not acknowledged."""
    start = time.perf_counter()
    processes = [
        subprocess.Popen([STORESCU, "-aec", AET, "127.0.0.1", str(port), *map(str, paths[first::associations])])
        for first in range(associations)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"storescu failed: {codes}")
    return time.perf_counter() - start


def compare(root: Path, instances: int, rounds: int, associations: int) -> None:
    """Print the rate of each server: the median over the rounds, and the lowest and the highest."""
    rates: dict[str, list[float]] = {"unsynced": [], "synced": [], "node": []}
    for number in range(rounds):
        folder = root / f"round-{number}"
        paths = write_series(folder / "scans", number, instances)
        for kind in ("unsynced", "synced"):
            bare = Bare(folder, kind)
            rates[kind].append(instances / send(bare.port, paths, associations))
            bare.end()
        node = NodeProcess(folder, root / "bundle", "--settle", 600, "--max-associations", 100)
        node.start()
        rates["node"].append(instances / send(node.port, paths, associations))
        node.end()
    print(f"{instances} instances of {paths[0].stat().st_size / 1e3:.0f} kB, {associations} at once, {rounds} rounds")
    for kind, values in rates.items():
        middle = statistics.median(values)
        ratio = statistics.median(node / value for node, value in zip(rates["node"], values, strict=True))
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"{kind:9}  {middle:6.1f} instances/s ({spread}), the node's rate is {ratio:.2f} times this")


def watch_memory(root: Path, instances: int, associations: int) -> None:
    """Print the memory of the node before and after many instances."""
    node = NodeProcess(root / "memory", root / "bundle", "--settle", 2, "--max-associations", 100)
    node.spool.parent.mkdir()
    node.start()
    assert node.process is not None
    process, sent, measured = node.process.pid, 0, []
    step = max(instances // 10, associations)
    while sent < instances:
        paths = write_series(root / f"scans-{sent}", 1000 + sent // step, step)
        send(node.port, paths, associations)
        sent += step
        wait_for(lambda number=sent // step: len(node.answers()) == number, "the series has its answer", 600)
        measured.append(resident_bytes(process) / 1e6)
        print(f"{sent:6} instances, {sent // step:3} series: {measured[-1]:.1f} MB", flush=True)
        for path in (*paths, *node.files()):
            path.unlink(missing_ok=True)  # it may be moving
    node.end()
    print(f"memory grew by {100 * (measured[-1] / measured[1] - 1):.1f}% after the second step")


def main() -> int:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--associations", type=int, default=1)
    parser.add_argument("--memory", type=int, default=0, metavar="INSTANCES")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_bundle(root / "bundle")
        if options.memory:
            watch_memory(root, options.memory, options.associations)
        else:
            compare(root, options.instances, options.rounds, options.associations)
    return 0


if __name__ == "__main__":
    sys.exit(main())
