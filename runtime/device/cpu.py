"""Count the CPU cores that this process may use: limited by affinity and by the container's quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """Return the cores that this process may use, at least 1: the smaller of affinity mask and cgroup CPU quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS, Windows
        cores = os.cpu_count() or 1
    quotas = [quota for folder in cgroup_folders() if (quota := cgroup_quota(folder)) is not None]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def cgroup_folders(root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> list[Path]:
    """Return the cgroup folders with limits for this process: ``root``, and every group from there down to its own.

    In a container the process's group is usually ``root``; in a systemd service or scope it is below. Version 1 has one
    tree for each controller; ``cpu`` and ``memory`` are used here.
    """
    folders = [root]
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, _, tail = line.partition(":")
        controllers, _, path = tail.partition(":")
        controller_names = controllers.split(",")  # empty in version 2, which has one tree
        for tree in (controller for controller in ("", "cpu", "memory") if controller in controller_names):
            folder = root / tree
            for name in path.strip("/").split("/"):
                if name in ("", ".."):  # the group is the root, or outside of the visible tree
                    break
                folder /= name
                folders.append(folder)
    return folders


def cgroup_quota(folder: Path) -> float | None:
    """Return the CPU quota in cores from the files of cgroup version 2 (``cpu.max``) or 1 (``cpu.cfs_*``), or None.

    ``folder`` is a group, or the root of version 1, where the files are below ``cpu``.
    """
    try:
        limit, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        for group in (folder, folder / "cpu"):
            try:
                limit = (group / "cpu.cfs_quota_us").read_text().strip()
                period = (group / "cpu.cfs_period_us").read_text().strip()
                break
            except OSError:
                continue
        else:
            return None
    if limit in ("max", "-1"):
        return None
    try:
        return int(limit) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
