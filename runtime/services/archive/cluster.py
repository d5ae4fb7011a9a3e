"""Start Ray on this machine, or connect to a cluster, without its reports, dashboard and messages."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from mri_edge.device.cpu import available_cpus
from mri_edge.device.native import silence_stderr
from mri_edge.errors import EngineUnavailable, UsageError, first_line, printable
from mri_edge.storage.staging import temporary_folder

# Ray reads these when it is imported or started.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no reports of use to its maker
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_TQDM": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning that tasks without a GPU will not see any
    "RAY_idle_worker_killing_time_threshold_ms": "60000",  # of a process that writes, which is needed again soon
    "RAY_task_events_report_interval_ms": "0",  # Ray would keep 3.5 KB about each of up to 100,000 tasks
    # What allocators keep for later: Arrow's 30 MB in a process that writes, that of the C library in every thread.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
}
# Ray on this machine only: other machines cannot connect, and programs of other users have no token.
_LOCAL_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
_CONNECT_S = 20.0
_LONGEST_TEMP = 20  # characters: Ray adds 86 to the names of its sockets, which on Linux have at most 107
_STORE_BYTES = 512 << 20  # for scans on their way from tasks to actors; Ray's default is 30% of the memory
# Proportions of a core. The rest of each is for short tasks that read the list of inputs and write results.
WORK_CPUS = 0.95
SHORT_CPUS = 0.02


@dataclass(frozen=True)
class Resources:
    """What the run may use: cores and GPUs of all nodes."""

    cpus: int
    gpus: int


def import_ray(address: str | None) -> None:
    """Import Ray with its reports off, for a cluster or this machine alone. Raises EngineUnavailable without Ray."""
    os.environ.update(_ENVIRONMENT)
    if address is None:
        os.environ.update(_LOCAL_ENVIRONMENT, RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        import jinja2  # noqa: F401 (the summary needs it)
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401
    except ImportError as error:
        raise EngineUnavailable(
            f"'archive' needs Ray ({first_line(error)})", 'Run: pip install "mri-edge[archive]"'
        ) from error


@contextmanager
def cluster(address: str | None) -> Iterator[Resources]:
    """Start Ray with the cores of this process for the time of the block, or connect to the cluster at ``address``.

    The cores are counted by affinity and by the quota of the container. A started Ray listens on the loopback interface
    only, and its temporary files are removed afterwards; those of a killed run are removed by the next one.

    Raises
    ------
    UsageError
        No cluster answers at the address.
    OutputError
        No temporary folder can be made.
    """
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    with (
        ExitStack() as folders,
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
    ):
        warnings.simplefilter("ignore")  # they are for those who write programs for Ray, as are its lines on stdout
        try:
            _check_reachable(address)
            with silence_stderr(), _without_other_services(), _same_sigterm():
                if address is None:
                    copies = folders.enter_context(temporary_folder("scans"))
                    short = len(os.fsencode(copies.parent)) <= _LONGEST_TEMP
                    own = folders.enter_context(temporary_folder("ray", copies.parent if short else Path("/tmp")))  # noqa: S108
                    with _temporary_files_of_workers_in(str(copies)):
                        ray.init(
                            address="local",
                            num_cpus=available_cpus(),
                            object_store_memory=_STORE_BYTES,
                            include_dashboard=False,
                            _temp_dir=str(own),
                            **quiet,
                        )
                else:
                    ray.init(address=address, **quiet)
        except KeyboardInterrupt:  # while Ray starts
            ray.shutdown()
            raise
        except (OSError, ValueError, RuntimeError) as error:
            if address is None:
                raise
            raise UsageError(
                f"--address {address}: no cluster of Ray answers ({printable(first_line(error))[:150]})",
                "Start one with 'ray start --head', or leave --address out to use this machine",
            ) from error
        try:
            found = ray.cluster_resources()
            cpus = available_cpus() if address is None else int(found.get("CPU", 1))
            yield Resources(max(1, cpus), int(found.get("GPU", 0)))
        finally:
            ray.shutdown()


@contextmanager
def _without_other_services() -> Iterator[None]:
    """Start no process of the dashboard, the autoscaler or the log monitor while the block runs.

    Nothing here uses them, each takes memory and CPU time, and Ray has no option against them. With
    ``include_dashboard=False`` Ray still starts a process of the dashboard, which asks the metadata services of three
    clouds where it runs, for reports of use, although these are off.
    """
    from ray._private.node import Node

    names = ("start_api_server", "start_monitor", "start_log_monitor")
    real = {name: getattr(Node, name) for name in names}
    for name in names:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in real.items():
            setattr(Node, name, start)


@contextmanager
def _same_sigterm() -> Iterator[None]:
    """Keep the program's handler of SIGTERM, if it has one. Ray sets its own, which raises SystemExit."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _check_reachable(address: str | None) -> None:
    """Raise OSError if nothing accepts connections at an address: Ray would try for minutes and then abort."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()


@contextmanager
def _temporary_files_of_workers_in(folder: str) -> Iterator[None]:
    """Let processes that are started in the block use a folder of ours: one that is killed leaves copies of scans."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
