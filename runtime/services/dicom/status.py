"""Say what a node has received, answered and still has to send: for people, for programs and for Prometheus."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mri_edge.errors import OutputError, UsageError
from mri_edge.storage.atomic import atomic_write

from .answers import marker
from .counters import Counters
from .delivery import Delivery
from .spool import Spool

STATE, METRICS = "state.json", "metrics.prom"
STATE_S = 5.0
"""How often a running node writes its state."""
_SILENT_S = 6 * STATE_S + 180  # after which a node counts as ended; a heatmap on a slow board may take minutes
_SCHEMA_VERSION = 1
_PREFIX = "mri_edge_node_"
_HELP = {
    "instances": "Instances that were sent to the node, by the answer.",
    "sorted": "Received instances, by what they were found to be.",
    "associations": "Associations, by how they began or ended.",
    "connections": "Connections that were closed at once.",
    "series": "Answers for series, by their label or by why there is none.",
    "objects_sent": "Objects that an archive took.",
    "answers_delivered": "Answers that an archive has.",
    "refusals": "Attempts to send that an archive refused.",
    "failures": "Attempts to send that failed as a whole.",
}


def write_state(spool: Path, name: str, deliveries: Sequence[Delivery], counters: Counters, associations: int) -> None:
    """Write what only the running program knows, and the metrics.

    Raises
    ------
    OutputError
        The disk is full or not mounted: nothing is written into an empty mount point.
    """
    if not Spool(spool).incoming.is_dir():
        raise OutputError(
            f"{spool}: the folders of the node are missing: the disk is not mounted, or somebody removed them",
            "Mount the disk, or start the node again",
        )
    state = {
        "node": name,
        "process": os.getpid(),
        "time": time.time(),
        "associations": associations,
        "destinations": {delivery.archive.name: _destination(delivery) for delivery in deliveries},
        "counts": [[name, outcome, number] for (name, outcome), number in counters.items()],
    }
    atomic_write(spool / STATE, json.dumps(state) + "\n")
    atomic_write(spool / METRICS, _metrics(survey(spool)))


def _destination(delivery: Delivery) -> dict[str, Any]:
    problem, next_attempt_s = delivery.problem, delivery.next_attempt_s
    if problem is None and (refusal := delivery.refusal) is not None:
        problem, next_attempt_s = refusal
    return {"problem": problem, "next_attempt_s": round(next_attempt_s, 1)}


def survey(folder: Path) -> dict[str, Any]:
    """Return what is in a spool, and the last state of its node, as plain types.

    Raises
    ------
    UsageError
        The folder is not a spool.
    """
    spool = Spool(folder)
    if not spool.incoming.is_dir():
        raise UsageError(f"{folder}: is not the spool of a node", "Name the --spool of 'mri-edge node'")
    state = _read_state(folder / STATE)
    now = time.time()
    destinations = {
        name: {**found, "waiting": 0, "oldest_s": None} for name, found in state.get("destinations", {}).items()
    }
    waiting = 0
    for path in _folders(spool.outbox):
        waiting += 1
        age = None
        with suppress(OSError):
            age = max(0, round(now - (path / "answer.json").stat().st_mtime))  # the clock may have been set back
        for name, found in destinations.items():
            if not marker(path, name, "delivered").exists():
                found["waiting"] += 1
                found["oldest_s"] = max(found["oldest_s"] or 0, age or 0)
    free_bytes = None
    with suppress(OSError):
        space = os.statvfs(folder)
        free_bytes = space.f_bavail * space.f_frsize
    return {
        "schema_version": _SCHEMA_VERSION,
        "running": bool(state) and now - state["time"] < _SILENT_S and _runs(state.get("process")),
        "node": state.get("node"),
        "associations": state.get("associations", 0),
        "free_bytes": free_bytes,
        "incoming": sum(name.endswith(".dcm") and not name.startswith(".") for name in _names(spool.incoming)),
        "series_waiting": sum(1 for _ in _folders(spool.series)),
        "series_done": sum(1 for _ in _folders(spool.done)),
        "outbox": waiting,
        "conflicts": sum(len(list(_names(path))) for path in _folders(spool.conflicts)),
        "failed": len(list(_names(spool.failed))),
        "destinations": destinations,
        "counts": state.get("counts", []),
    }


def _read_state(path: Path) -> dict[str, Any]:
    """Return the state that a node wrote; empty if there is none, or it is damaged."""
    try:
        state = json.loads(path.read_bytes())
        return {
            "node": str(state["node"]),
            "process": int(state["process"]),
            "time": float(state["time"]),
            "associations": int(state["associations"]),
            "destinations": {
                name: {
                    "problem": found["problem"] and str(found["problem"]),
                    "next_attempt_s": float(found["next_attempt_s"]),
                }
                for name, found in state["destinations"].items()
            },
            "counts": [[str(name), str(outcome), int(number)] for name, outcome, number in state["counts"]],
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return {}


def as_text(found: Mapping[str, Any]) -> str:
    """Return a survey as lines for people."""
    lines = [
        f"node         {found['node'] or 'unknown'}, {'running' if found['running'] else 'not running'}",
        f"received     {_count(found['incoming'], 'instance')} to sort, {found['series_waiting']} series waiting, "
        f"{found['series_done']} series done",
        f"outbox       {_count(found['outbox'], 'result')}",
    ]
    for name, destination in found["destinations"].items():
        parts = [f"{_count(destination['waiting'], 'result')} waiting"]
        if destination["oldest_s"] is not None:
            parts.append(f"the oldest for {_duration(destination['oldest_s'])}")
        if destination["problem"]:
            parts.append(f"{destination['problem']}, next attempt in {_duration(destination['next_attempt_s'])}")
        lines.append(f"  {name}  {', '.join(parts)}")
    if found["outbox"] and not found["destinations"]:
        lines.append("  no --send-to: results stay here")
    lines.append(f"conflicts    {_count(found['conflicts'], 'instance')} with the identifier of another one")
    lines.append(f"failed       {_count(found['failed'], 'instance')} that cannot be read")
    if found["free_bytes"] is not None:
        lines.append(f"disk         {found['free_bytes'] / 1e9:.1f} GB free")
    return "\n".join(lines)


def _metrics(found: Mapping[str, Any]) -> str:
    """Return a survey in the text format of Prometheus."""
    lines = []
    for name, help_text, key in (
        ("associations_open", "Associations that are open now.", "associations"),
        ("incoming", "Instances that are not sorted into series yet.", "incoming"),
        ("series_waiting", "Series that wait for more instances or for their answer.", "series_waiting"),
        ("series_done", "Series that have their answer and are still on the disk.", "series_done"),
        ("outbox", "Results that at least one archive does not have.", "outbox"),
        ("conflicts", "Instances with the identifier of another one.", "conflicts"),
        ("failed", "Instances that cannot be read.", "failed"),
        ("free_bytes", "Free bytes of the disk.", "free_bytes"),
    ):
        if found[key] is not None:
            lines += [*_described(name, help_text, "gauge"), f"{_PREFIX}{name} {found[key]}"]
    for name, key, help_text in (
        ("destination_waiting", "waiting", "Results that an archive does not have."),
        ("destination_oldest_seconds", "oldest_s", "Age of the oldest result that an archive does not have."),
    ):
        lines += _described(name, help_text, "gauge")
        for destination, values in found["destinations"].items():
            lines.append(f'{_PREFIX}{name}{{destination="{_label(destination)}"}} {values[key] or 0}')
    described = set()
    for name, outcome, number in found["counts"]:
        if name not in described:
            described.add(name)
            lines += _described(f"{name}_total", _HELP[name], "counter")
        label = f'{{outcome="{_label(outcome)}"}}' if outcome else ""
        lines.append(f"{_PREFIX}{name}_total{label} {number}")
    return "\n".join(lines) + "\n"


def _described(name: str, help_text: str, kind: str) -> list[str]:
    return [f"# HELP {_PREFIX}{name} {help_text}", f"# TYPE {_PREFIX}{name} {kind}"]


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _runs(process: Any) -> bool:
    try:
        os.kill(int(process), 0)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        return isinstance(error, PermissionError)  # it runs as another user
    return True


def _names(folder: Path) -> Iterator[str]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name


def _folders(folder: Path) -> Iterator[Path]:
    return (folder / name for name in _names(folder) if not name.startswith("."))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
