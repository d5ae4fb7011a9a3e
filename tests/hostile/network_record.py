"""Run commands with every engine and kind of scan under strace, and record connections and written files.

``python tests/hostile/network_record.py`` prints a table: command, engine, exit code, addresses other than local
sockets, files outside the folders that the command was given. ``tests/cli/test_no_network.py`` asserts that both
columns are empty. strace sees what the kernel sees, of every thread and process: an engine in C++ does not ask
Python's ``socket``, and a library that starts a process of its own is followed into it.

``train`` and ``export`` are not among them, nor ``serve``, ``node`` and ``archive``, which connect by design.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mri_edge.bundles.bundle import Bundle
from mri_edge.engines import engine_file, offered

PROGRAM = Path(sys.executable).with_name("mri-edge")
CHECKOUT = Path(__file__).resolve().parents[2]
SCAN = CHECKOUT / "examples" / "phantom-1.jpg"
CROSSVAL = CHECKOUT / "docs" / "evidence" / "crossval" / "small-slices.json"

# These variables of build servers stop openvino_telemetry, ONNX Runtime and others from reporting. Users set none.
BUILD_SERVER = (
    *("CI", "CI_NAME", "CONTINUOUS_INTEGRATION", "BUILD_ID", "BUILD_NUMBER", "RUN_ID", "TF_BUILD", "GITHUB_ACTIONS"),
    *(
        "GITHUB_RUN_ID",
        "GITLAB_CI",
        "JENKINS_URL",
        "JENKINS_HOME",
        "TEAMCITY_VERSION",
        "TRAVIS",
        "CIRCLECI",
        "APPVEYOR",
    ),
    *("BUILDKITE", "BITBUCKET_BUILD_NUMBER", "CODEBUILD_BUILD_ID", "DRONE", "ORT_DISABLE_TELEMETRY"),
)
SYSCALLS = "trace=network,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"
LOOPBACK = re.compile(r'inet_addr\("127\.|"::1"|"::ffff:127\.')
NAME_SERVER = re.compile(r"htons\((53|5353|853)\)")  # a query to this machine's own resolver counts too
# The C library and Python write here in every program.
SYSTEM = ("/dev/", "/proc/", "/sys/", "anon_inode:")
CACHES = (".cache/mri-edge/", ".cache/matplotlib/", ".config/matplotlib/")  # the last one is created and stays empty


@dataclass(frozen=True)
class Run:
    """One command: its name in the table, its engine (``-``: all installed ones) and its arguments."""

    name: str
    engine: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """What a command did: its exit code, its network calls, and the files that it wrote without being asked to."""

    code: int
    calls: tuple[str, ...]
    files: tuple[str, ...]
    errors: str


def runs(work: Path) -> list[Run]:
    """Return each command once for every installed engine that it can use, or for each kind of scan.

    Makes the input files in ``work``.
    """
    incoming, pictures = work / "incoming", work / "pictures"
    incoming.mkdir()
    for label, source in (("no", SCAN), ("yes", SCAN.with_name("phantom-2.jpg"))):
        (pictures / label).mkdir(parents=True)
        shutil.copyfile(source, pictures / label / f"{label}.jpg")
    scan, notice = str(pictures / "no" / "no.jpg"), str(SCAN.with_name("NOTICE"))
    found, held = [], Bundle.open("small").manifest.artifacts
    for engine in offered():
        if engine_file(engine).missing() or not any(
            artifact.file.endswith(engine_file(engine).SUFFIXES) for artifact in held
        ):
            continue
        shutil.copyfile(SCAN, incoming / f"{engine}.jpg")
        chosen = ("--model", "small", "--engine", engine)
        one = ("--engine", engine, "--artifact", f"model.int8{engine_file(engine).SUFFIXES[0]}")
        watched = ("watch", str(incoming), "--out", str(work / f"out-{engine}"), "--once", "--settle", "0.1")
        found += [
            Run("predict", engine, ("predict", scan, *chosen)),
            Run("watch --once", engine, (*watched, "--every", "0.1", *chosen)),
            Run("warmup", engine, ("warmup", "--batch", "1", *chosen)),
            Run("bench", engine, ("bench", "small", *one, "--scans", scan, "--threads", "1")),
        ]
        if find_spec("sklearn") and find_spec("matplotlib"):
            scored = ("evaluate", "small", "--data", str(pictures), "--role", "all", "--engine", engine)
            found.append(Run("evaluate", engine, (*scored, "--out", str(work / f"evaluation-{engine}"))))
    bundle, packed, key = str(work / "small"), str(work / "small.mribundle"), str(work / "device")
    kept = ("--artifact", "model.int8.onnx", "--artifact", "model.int8.tflite")
    found += [
        *_runs_of_readers(work, scan),
        Run("info", "-", ("info", "small")),
        Run("verify", "-", ("verify", "small")),
        Run("tune", "-", ("tune", "--model", "small", "--seconds", "0.01", "--batch", "1")),
        Run("doctor", "-", ("doctor", "--model", "small")),
        Run("completion", "-", ("completion", "bash")),
        Run("--version", "-", ("--version",)),
        Run("bundle slim", "-", ("bundle", "slim", "small", *kept, "--out", bundle)),
        Run("bundle record", "-", ("bundle", "record", bundle, scan, "--notice", notice)),
    ]
    if find_spec("sklearn") and find_spec("matplotlib"):
        out = str(work / "recalibrated")
        found.append(Run("recalibrate", "-", ("recalibrate", "small", "--crossval", str(CROSSVAL), "--out", out)))
    if find_spec("cryptography"):
        found += [
            Run("bundle keygen", "-", ("bundle", "keygen", key)),
            Run("bundle sign", "-", ("bundle", "sign", bundle, "--key", f"{key}.pem")),
            Run("bundle verify-signature", "-", ("bundle", "verify-signature", bundle, "--key", f"{key}.pub.pem")),
        ]
    return [
        *found,
        Run("bundle pack", "-", ("bundle", "pack", bundle, "--out", packed)),
        Run("bundle unpack", "-", ("bundle", "unpack", packed, "--out", str(work / "unpacked"))),
    ]


def _runs_of_readers(work: Path, picture: str) -> Iterator[Run]:
    """Yield commands that read a picture, a DICOM file and a NIfTI file, as far as the libraries are installed."""
    scans = {"picture": picture}
    if find_spec("pydicom") and find_spec("gdcm"):
        scans["DICOM"] = str(SCAN.parent / "dicom" / "mni152-slice-2-lossless.dcm")
    if find_spec("nibabel"):
        import nibabel
        import numpy as np

        scans["NIfTI"] = str(work / "volume.nii.gz")
        values = np.random.default_rng(0).integers(0, 900, (64, 64, 8), np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([3.0, 3.0, 5.0, 1.0])), scans["NIfTI"])
    for kind, scan in scans.items():
        out = str(work / f"{kind}.png")
        yield Run(f"inspect, {kind}", "-", ("inspect", scan))
        yield Run(f"render, {kind}", "-", ("render", scan, "--out", out, "--explain", "--model", "small"))
        yield Run(f"predict --by series, {kind}", "-", ("predict", scan, "--by", "series", "--plane", "any"))


def trace(command: list[str], work: Path) -> Finding:
    """Run a command under strace, as a user with a new home folder would.

    Raises
    ------
    PermissionError
        No process may be traced here.
    """
    home, temporary = work / "home", work / "tmp"
    for folder in (home, temporary):
        folder.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in BUILD_SERVER}
    environment = {name: value for name, value in environment.items() if not name.startswith(("MRI_EDGE_", "XDG_"))}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    log = work / "trace"
    done = subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-q", "-y", "-s", "200", "-e", SYSCALLS, "-o", str(log), *command],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in done.stderr:
        raise PermissionError(done.stderr.splitlines()[0])
    lines = list(_joined(log.read_text(errors="replace").splitlines()))
    files = {path for line in lines for path in _written(line, work) if not _may_write(path, work)}
    return Finding(done.returncode, tuple(filter(_is_call, lines)), tuple(sorted(files)), done.stderr)


def _may_write(path: str, work: Path) -> bool:
    """Whether a path is in ``work`` outside the home folder, or in the cache folder of mri-edge."""
    if path.startswith(SYSTEM):
        return True
    home = f"{work}/home/"
    if path.startswith(home):
        return any(cache.startswith(path[len(home) :]) or path[len(home) :].startswith(cache) for cache in CACHES)
    return path.startswith(f"{work}/")


def _joined(lines: list[str]) -> Iterator[str]:
    """Yield the calls of a trace, each as one line. strace splits a call that another thread interrupts."""
    begun: dict[str, str] = {}
    for line in lines:
        process, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[process] = call.removesuffix("<unfinished ...>")
        elif call.startswith("<..."):
            yield begun.pop(process, "") + call.partition("resumed>")[2]
        else:
            yield call


def _is_call(line: str) -> bool:
    """Whether a line is a call that leaves this machine, or a query to a name server."""
    if not line.startswith(("connect(", "sendto(", "sendmsg(", "sendmmsg(")) or "AF_INET" not in line:
        return False
    return LOOPBACK.search(line) is None or NAME_SERVER.search(line) is not None


def _written(line: str, work: Path) -> Iterator[str]:
    """Return the paths that a successful call creates or opens for writing."""
    name, _, rest = line.partition("(")
    arguments, _, result = rest.rpartition(" = ")
    if not result or result.startswith(("-1", "?")):
        return
    if name in ("open", "openat", "creat"):
        if name == "creat" or re.search(r"O_(WRONLY|RDWR|CREAT)", arguments):
            opened = re.search(r"<(.*)>", result)
            yield opened.group(1).removesuffix(">(deleted)") if opened else result
    elif name.startswith(("mkdir", "rename", "link", "symlink")):
        made = re.findall(r'"([^"]*)"', arguments)[-1]
        yield f"{work / made}{'/' if name.startswith('mkdir') else ''}"


def main() -> None:
    """Print the record."""
    print("| command | engine | exit | network | files outside its folders |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        for run in runs(work):
            found = trace([str(PROGRAM), *run.arguments], work)
            called = "; ".join(found.calls) or "none"
            print(f"| {run.name} | {run.engine} | {found.code} | {called} | {', '.join(found.files) or 'none'} |")
            if found.code:
                print(found.errors, file=sys.stderr)


if __name__ == "__main__":
    main()
