"""How many CPU cores this process may really use: affinity and the container's quota, not the machine's count."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """Cores this process may use, at least 1: the smallest of affinity mask and cgroup CPU quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS, Windows
        cores = os.cpu_count() or 1
    quotas = [quota for folder in cgroup_folders() if (quota := cgroup_quota(folder)) is not None]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def cgroup_folders(root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> list[Path]:
    """Folders whose limits hold for this process: ``root``, and each group below it down to its own.

    In a container its own group is usually ``root``; in a systemd service or scope it lies below.
    Version 1 has a tree for each controller, of which ``cpu`` and ``memory`` count here.
    """
    folders = [root]
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, _, tail = line.partition(":")
        controllers, _, path = tail.partition(":")
        named = controllers.split(",")  # in version 2, which has one tree, the empty name
        for tree in (one for one in ("", "cpu", "memory") if one in named):
            folder = root / tree
            for name in path.strip("/").split("/"):
                if name in ("", ".."):  # ours is the root, or lies outside of what we see
                    break
                folder /= name
                folders.append(folder)
    return folders


def cgroup_quota(folder: Path) -> float | None:
    """CPU quota in cores from cgroup version 2 (``cpu.max``) or 1 (``cpu.cfs_*``) files; None without one.

    ``folder`` is a group, or the root of version 1, where the files lie below ``cpu``.
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
