"""The Dockerfiles: users, commands and locked dependencies, and which files the builder receives."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mri_edge.cli import cli

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = sorted((CHECKOUT / "deploy").glob("Dockerfile*"))
LOCKS = [*sorted((CHECKOUT / "deploy").glob("*.lock")), CHECKOUT / "requirements-dev.lock"]
KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "HEALTHCHECK", "RUN", "USER", "WORKDIR"}


def _instructions(file: Path) -> list[tuple[str, str]]:
    """Each instruction with its arguments, without comments and line continuations."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(encoding="utf-8"), flags=re.M).replace("\\\n", " ")
    lines = [re.sub(r"\s+", " ", line).strip().partition(" ") for line in text.splitlines() if line.strip()]
    return [(name, rest) for name, _, rest in lines]


def _pinned(lock: Path) -> set[str]:
    """The names of the packages that a lock installs."""
    return set(re.findall(r"^([\w.-]+)==", lock.read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_image_runs_mri_edge_as_an_unprivileged_user(file: Path) -> None:
    instructions = _instructions(file)
    names = [name for name, _ in instructions]
    assert set(names) <= KNOWN
    last = dict(instructions)  # the last occurrence of each instruction
    assert int(last["USER"]) >= 1000  # a number, because Kubernetes cannot check that a name is not root
    assert "ENTRYPOINT" in names[names.index("USER") :]
    assert json.loads(last["ENTRYPOINT"]) == ["mri-edge"]
    for command in (json.loads(last["CMD"]), json.loads(last["HEALTHCHECK"].partition(" CMD ")[2])[1:]):
        context = click.Context(cli)
        name, *arguments = command
        if name != "--help":
            cli.get_command(context, name).make_context(name, arguments)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_run_lines_are_valid_shell(file: Path) -> None:
    for name, rest in _instructions(file):
        if name == "RUN":
            done = subprocess.run(["sh", "-n", "-c", rest], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_package_is_installed_from_a_lock_with_hashes(file: Path) -> None:
    """Two installations are exempt: the project itself, without dependencies, and NVIDIA's wheel for the Jetson."""
    commands = [command for name, rest in _instructions(file) if name == "RUN" for command in rest.split(" && ")]
    installs = [command for command in commands if "pip install" in command]
    assert any("--require-hashes" in command for command in installs)
    for command in installs:
        own = command.endswith("--no-deps --no-build-isolation .")
        nvidia = file.name == "Dockerfile.jetson" and command.endswith('--index-url "${INDEX}" onnxruntime-gpu')
        assert own or nvidia or re.search(r'--require-hashes --requirement "?deploy/\S+"?$', command), command


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_lock_has_hashes_and_no_index(lock: Path) -> None:
    """pip itself would refuse a package without a hash, but only where the image is built."""
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    blocks = re.split(r"\n(?=\w)", text.split("\n# The following packages")[0])
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert {"numpy", "pillow", "click", "setuptools"} <= _pinned(lock)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_lock_satisfies_the_declared_dependencies(lock: Path) -> None:
    """`make lock` was run after the dependencies in pyproject.toml changed."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    requirements = [Requirement(line) for line in project["project"]["dependencies"]]
    if lock.name == "requirements-cuda.lock":
        requirements = [requirement for requirement in requirements if requirement.name != "onnxruntime"]
        requirements += [Requirement(line) for line in project["dependency-groups"]["cuda"]]
    python = {"python_version": "3.11" if lock.name == "requirements-cuda.lock" else "3.10"}  # as in the Makefile
    requirements = [
        requirement for requirement in requirements if not requirement.marker or requirement.marker.evaluate(python)
    ]
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.M)
    for requirement in requirements:
        versions = [version for name, version in pins if name == requirement.name]
        assert versions, requirement
        assert all(requirement.specifier.contains(version) for version in versions), requirement


def test_the_locked_tools_are_those_that_make_test_installs() -> None:
    """Otherwise CI, which installs the lock, skips the tests of the missing packages."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    [extras] = re.findall(r"^DEV_EXTRAS := (.+)$", makefile, re.M)
    assert "--editable '.[$(DEV_EXTRAS)]' --group dev" in makefile
    assert f"--editable '.[{extras}]' --group dev" in (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")

    def group(name: str) -> Iterator[str]:
        for entry in project["dependency-groups"][name]:
            yield from group(entry["include-group"]) if isinstance(entry, dict) else [entry]

    lines = {*group("dev")}.union(*(project["project"]["optional-dependencies"][extra] for extra in extras.split(",")))
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", (CHECKOUT / "requirements-dev.lock").read_text(encoding="utf-8"), re.M)
    unlocked = [
        line
        for line in sorted(lines)
        if not any(
            canonicalize_name(Requirement(line).name) == name and Requirement(line).specifier.contains(version)
            for name, version in pins
        )
    ]
    assert unlocked == []


def test_onnxruntime_and_onnxruntime_gpu_are_never_installed_together() -> None:
    """Both wheels contain the same files."""
    for lock in LOCKS:
        assert len(_pinned(lock) & {"onnxruntime", "onnxruntime-gpu"}) == 1
    assert "onnxruntime-gpu" in _pinned(CHECKOUT / "deploy" / "requirements-cuda.lock")
    jetson = " ".join(rest for name, rest in _instructions(CHECKOUT / "deploy" / "Dockerfile.jetson") if name == "RUN")
    assert jetson.index("uninstall --yes onnxruntime") < jetson.index("onnxruntime-gpu")


def test_builder_receives_the_sources_and_no_scan() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    rules = [line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    included = [rule[1:] for rule in rules if rule.startswith("!")]

    def sent(name: str) -> bool:
        return any(fnmatch(name, rule) or name.startswith(f"{rule}/") for rule in included)

    tables = project["tool"]["setuptools"]
    needed = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    needed += [lock.relative_to(CHECKOUT).as_posix() for lock in LOCKS if lock.parent.name == "deploy"]
    assert all(sent(name) for name in [*needed, *tables["package-dir"].values()])
    tracked = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    pictures = [name for name in tracked.stdout.splitlines() if sent(name) and fnmatch(name, "*.jp*g")]
    assert all("/golden/" in name or "/page/demo/" in name for name in pictures)
    assert not any(sent(name) for name in (".git/config", ".venv/bin/python", "bundles/mine/model.keras", "scan.jpg"))
