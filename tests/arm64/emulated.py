"""The emulated ARM system of check.py: run commands in it, and install mri-edge."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mri_edge import __version__
from mri_edge.device.machine import cpu

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
VENV = "/opt/mri-edge"  # in the emulated system; enter.sh puts its bin first in PATH
# The emulated system gets the versions of this machine, so that only the processor differs.
PACKAGES = ("ai-edge-litert", "click", "flatbuffers", "numpy", "onnxruntime", "pillow", "protobuf")
PACKAGES += ("highdicom", "pydicom", "pyjpegls", "pynetdicom", "python-gdcm")  # of the extra node
LIMIT = 1800  # seconds for one emulated command; the slowest takes minutes
START = time.monotonic()

Record = dict[str, Any]


class Failed(Exception):
    """A command failed or gave a wrong result; the message is the reason."""


class Emulated:
    """The emulated ARM system, in which commands run."""

    def __init__(self, root: Path, out: Path, folders: dict[Path, str]) -> None:
        self.root, self.out = root, out
        self._folders = folders

    def run(self, core: str, *command: str, offline: bool = True) -> str:
        """Run a command on ``core`` and return its standard output."""
        return run(*self.command(core, *command, offline=offline))

    def command(self, core: str, *command: str, offline: bool = True) -> list[str]:
        """Return the command of this machine that runs a command on ``core``."""
        mounts = [part for folder, place in self._folders.items() for part in ("--read", str(folder), place)]
        # peers.NodeProcess names its spool by the path on this machine.
        mounts += [part for place in ("/out", str(self.out)) for part in ("--write", str(self.out), place)]
        # The profile of tune holds for a core, so each core has its own cache.
        command = ("env", f"XDG_CACHE_HOME=/out/{core}", *command)
        entered = [str(HERE / "enter.sh"), *(["--offline"] if offline else []), *mounts]
        return [*entered, str(self.root), core, *command]


def install(emulated: Emulated) -> Record:
    """Build the wheel, install it in the emulated system, and return the facts of the record."""
    say("here", "building the wheel")
    source = emulated.out / "source"  # a copy, as the build leaves files in it
    run("git", "checkout-index", "--all", f"--prefix={source}/", cwd=CHECKOUT)
    run(sys.executable, "-m", "build", "--outdir", str(emulated.out / "dist"), str(source))
    [wheel] = (emulated.out / "dist").glob("*.whl")
    pins = {name: importlib.metadata.version(name) for name in PACKAGES}
    (emulated.out / "constraints.txt").write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
    pip = f"{VENV}/bin/pip", "install", "--quiet", "--only-binary=:all:", "--constraint", "/out/constraints.txt"
    weights = _install(emulated, wheel.name, pip)
    system = emulated.run("cortex-a72", "python3", "-c", "import platform as p; print(p.python_version(), p.machine())")
    python, architecture = system.split()
    arm = importlib.metadata.distributions(path=[str(_site(emulated))])
    return {
        "made_by": "make test-arm64",
        "mri_edge": __version__,
        "commit": run("git", "describe", "--always", "--dirty", cwd=CHECKOUT).strip(),
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "emulator": run("qemu-aarch64-static", "--version").splitlines()[0],
        "system": f"Debian {(emulated.root / 'etc/debian_version').read_text().strip()}, {architecture}",
        "python": python,
        "packages": {package.name.lower(): package.version for package in arm if package.name.lower() in PACKAGES},
        "peer": {"cpu": str(cpu()), "python": sys.version.split()[0], "packages": pins},
        "install": weights,
    }


def _install(emulated: Emulated, wheel: str, pip: tuple[str, ...]) -> Record:
    """Install the wheel and list the megabytes of each package; then add two extras and pytest.

    If the environment has the same libraries already, only the wheel is replaced, because emulated pip takes minutes.
    """
    stamp = emulated.root / VENV[1:] / "made-of.json"
    made_of = (emulated.out / "constraints.txt").read_text() + (CHECKOUT / "pyproject.toml").read_text()
    known = json.loads(stamp.read_text()) if stamp.is_file() else {}
    weigh = [sys.executable, str(CHECKOUT / "scripts" / "weigh_install.py"), "--site"]
    if known.get("made_of") == made_of:
        say("emulated", "installing the wheel; the libraries are those of the last run")
        emulated.run("cortex-a72", *pip, "--no-deps", "--force-reinstall", f"/out/dist/{wheel}", offline=False)
    else:
        say("emulated", "installing the wheel in a new environment")
        emulated.run("cortex-a72", "python3", "-m", "venv", "--clear", VENV, offline=False)
        emulated.run("cortex-a72", *pip, f"/out/dist/{wheel}", offline=False)
        known = {"made_of": made_of, "packages": list(json.loads(run(*weigh, str(_site(emulated))))["packages"])}
        emulated.run("cortex-a72", *pip, f"/out/dist/{wheel}[litert,node]", "pytest", offline=False)
        stamp.write_text(json.dumps(known))
    packages = json.loads(run(*weigh, str(_site(emulated))))["packages"]
    packages = {name: size for name, size in packages.items() if name in known["packages"]}
    return {"megabytes": round(sum(packages.values()), 1), "packages": packages}


def _site(emulated: Emulated) -> Path:
    [site] = (emulated.root / VENV[1:]).glob("lib/python3.*/site-packages")
    return site


def run(*command: str, cwd: Path | None = None) -> str:
    """Run a command and return its standard output. Raises Failed with the end of its output."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=LIMIT, cwd=cwd
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"no answer within {LIMIT} s: {command}") from None
    if done.returncode:
        printed = re.sub(r"\s+", " ", (done.stderr + done.stdout)[-1500:])
        raise Failed(f"exit code {done.returncode} of {' '.join(map(str, command[-6:]))}: {printed}")
    return done.stdout


def say(where: str, text: str) -> None:
    """Print a line with the minutes since the start."""
    print(f"[{(time.monotonic() - START) / 60:5.1f} min] {where}: {text}", file=sys.stderr, flush=True)
