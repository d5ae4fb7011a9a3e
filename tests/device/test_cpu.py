"""The core count respects affinity and the container's quota, read from files as the kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mri_edge.device import cpu
from mri_edge.device.cpu import available_cpus, cgroup_folders, cgroup_quota


def _version_2(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(content)
    return folder


def _version_1(folder: Path, quota: str, period: str) -> Path:
    (folder / "cpu").mkdir()
    (folder / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu" / "cpu.cfs_period_us").write_text(period)
    return folder


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2.0),
        ("150000 100000\n", 1.5),
        ("5000 100000\n", 0.05),
        ("", None),
        ("200000 0\n", None),
        ("many 100000\n", None),
    ],
)
def test_quota_of_cgroup_version_2(tmp_path: Path, content: str, cores: float | None) -> None:
    assert cgroup_quota(_version_2(tmp_path, content)) == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"), [("-1\n", "100000\n", None), ("50000\n", "100000\n", 0.5), ("x", "100000\n", None)]
)
def test_quota_of_cgroup_version_1(tmp_path: Path, quota: str, period: str, cores: float | None) -> None:
    assert cgroup_quota(_version_1(tmp_path, quota, period)) == cores


def test_no_quota_without_files(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None


def test_groups_of_version_2_are_followed_down_to_our_own(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/system.slice/reader.service\n")
    assert cgroup_folders(tmp_path, membership) == [
        tmp_path,
        tmp_path / "system.slice",
        tmp_path / "system.slice" / "reader.service",
    ]


def test_groups_of_version_1_are_followed_in_the_trees_that_count(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("9:pids:/one\n4:cpu,cpuacct:/docker/1\n3:memory:/two\n0::/\n")
    folders = [tmp_path, tmp_path / "cpu" / "docker", tmp_path / "cpu" / "docker" / "1", tmp_path / "memory" / "two"]
    assert cgroup_folders(tmp_path, membership) == folders
    folders[2].mkdir(parents=True)
    (folders[2] / "cpu.cfs_quota_us").write_text("150000\n")
    (folders[2] / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(folders[2]) == 1.5


@pytest.mark.parametrize("line", ["0::/\n", "0::/../outside\n", "4:cpu,cpuacct:/\n", "4:pids:/docker/1\n", ""])
def test_an_unknown_group_membership_leaves_only_the_root(tmp_path: Path, line: str) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text(line)
    assert cgroup_folders(tmp_path, membership) == [tmp_path]
    assert cgroup_folders(tmp_path, tmp_path / "none") == [tmp_path]


@pytest.mark.parametrize(("limits", "cores"), [((None,), 8), (("250000",), 3), (("max", "100000"), 1), (("5000",), 1)])
def test_smallest_limit_counts_and_is_rounded_up(
    limits: tuple[str | None, ...], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [
        tmp_path / str(i) if limit is None else _version_2(tmp_path / str(i), f"{limit} 100000\n")
        for i, limit in enumerate(limits)
    ]
    monkeypatch.setattr(cpu, "cgroup_folders", lambda: folders)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert available_cpus() == cores


def test_the_number_of_cpus_is_between_one_and_those_of_the_machine() -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
