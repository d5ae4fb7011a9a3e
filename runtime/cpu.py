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
    """Folders whose limits hold for this process: ``root``, and in version 2 each group down to its own.

    In a container its own group is usually ``root``; in a systemd service or scope it lies below.
    """
    folders = [root]
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        if line.startswith("0::/") and ".." not in line:  # version 2 has this one line
            for name in line[len("0::/") :].split("/"):
                if name:
                    folders.append(folders[-1] / name)
    return folders


def cgroup_quota(root: Path) -> float | None:
    """CPU quota in cores from cgroup version 2 (``cpu.max``) or 1 (``cpu.cfs_*``) files; None without one."""
    try:
        limit, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if limit in ("max", "-1"):
        return None
    try:
        return int(limit) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
