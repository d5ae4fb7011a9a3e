"""Run the product on emulated 64-bit ARM, and compare every probability with this machine's.

    make test-arm64                                 needs root on a Debian, see root.sh
    python tests/arm64/check.py --root DIR [BUNDLE...] [--record FILE]

On each core: `doctor`, `verify`, the engines' contract tests, `predict` on the demo scans with every embedded
model and every BUNDLE, each artefact in each engine, and a short `tune`. No network once the wheel is installed.
Exit code: 0 all agrees, 1 something does not, 2 cannot be done here. Emulated times say nothing about a board.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mri_edge import __version__
from mri_edge.bundles.bundle import Bundle, embedded_models
from mri_edge.device.machine import cpu
from mri_edge.engines import engine_files

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
HOST = Path(sys.executable).with_name("mri-edge")
FURTHER = "/bundles/"  # inside
VENV = "/opt/mri-edge"  # inside; enter.sh has its bin first in PATH
CORES = {"cortex-a72": "Raspberry Pi 4: no dot products", "cortex-a76": "Raspberry Pi 5: dot products"}
ENGINES = ("onnxruntime", "litert")
# The emulated system gets this machine's versions, so that a difference is the processor's.
PACKAGES = ("ai-edge-litert", "click", "flatbuffers", "numpy", "onnxruntime", "pillow", "protobuf")
# How far apart a probability may be, by precision. float32: other kernels sum in another order. float16: what export
# allows it against Keras; the A76 computes in half precision where x86 widens to float32 (2.4e-3 seen). dynamic: each
# run measures its ranges anew, and one kernel rounds otherwise than the other (6.6e-4 seen). int8: sums are integers
# and exact on both, what is left is the last layer in float (1.2e-7 seen).
BOUNDS = {"float32": 1e-5, "float16": 5e-3, "dynamic": 5e-3, "int8": 1e-5}
LIMIT = 1800  # seconds for one emulated command; the slowest takes minutes

Record = dict[str, Any]
Models = list[tuple[Bundle, str]]  # each with its name, or its folder inside


class Failed(Exception):
    """A command that did not do what it should; its words are the reason."""


class Emulated:
    """The ARM system on one core: runs commands in it."""

    def __init__(self, root: Path, out: Path, folders: dict[Path, str]) -> None:
        self.root, self.out = root, out
        self._folders = folders

    def run(self, core: str, *command: str, offline: bool = True) -> str:
        """Standard output of a command."""
        see = [part for folder, place in self._folders.items() for part in ("--see", str(folder), place)]
        # What tune finds on one core is not true of the other.
        command = ("env", f"XDG_CACHE_HOME=/out/{core}", *command)
        entered = [HERE / "enter.sh", *(["--offline"] if offline else []), *see, "--write", self.out, "/out"]
        return run(*map(str, entered), str(self.root), core, *command)


def main() -> int:
    """Parse the command line, do all, print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="further bundles to compare")
    parser.add_argument("--root", type=Path, required=True, help="the ARM Debian; made if it is not there")
    parser.add_argument("--suite", default="bookworm", help="Debian's suite, where it is made")
    parser.add_argument("--core", action="append", choices=CORES, help="default: all")
    parser.add_argument("--record", type=Path, help="write the findings here, as JSON")
    asked = parser.parse_args()
    made = subprocess.run([HERE / "root.sh", asked.root, asked.suite], check=False)
    if made.returncode:
        return made.returncode
    out = asked.root.resolve().with_name(f"{asked.root.name}.out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    embedded = [Bundle.open(name) for name in embedded_models()]
    further = [Bundle.open(folder.resolve()) for folder in asked.bundles]
    # Inside, an embedded model is given by name, which finds the one in the installed wheel.
    places = {bundle.folder: f"{FURTHER}{i}" for i, bundle in enumerate(further)}
    models = [(bundle, bundle.folder.name) for bundle in embedded]
    models += [(bundle, places[bundle.folder]) for bundle in further]
    emulated = Emulated(asked.root.resolve(), out, {CHECKOUT: "/src", **places})

    record = install(emulated)
    tiny = contract_on_host(out)
    answers = {(place, *run): on_host(bundle, place, *run) for bundle, place in models for run in runs(bundle)}
    cores = asked.core or list(CORES)
    with ThreadPoolExecutor(len(cores)) as pool:
        found = list(pool.map(lambda core: examine(emulated, core, tiny, models, answers), cores))
    record["models"] = {bundle.folder.name: origin(bundle) for bundle, _ in models}
    record["cores"] = {core: result.facts for core, result in zip(cores, found, strict=True)}
    record["comparisons"] = [row for comparison in found for row in comparison.comparisons]
    problems = [words for comparison in found for words in comparison.problems]
    record["problems"] = problems
    if asked.record:
        asked.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for problem in problems:
        say("PROBLEM", problem)
    say("all", "agrees" if not problems else "DOES NOT agree")
    return 1 if problems else 0


@dataclass
class Findings:
    """What was found on one core."""

    facts: Record = field(default_factory=dict)
    comparisons: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def examine(emulated: Emulated, core: str, tiny: Path, models: Models, answers: dict[tuple[str, ...], Any]) -> Findings:
    """All there is to do on one core; a failure ends its step and not the others."""
    found = Findings({"board": CORES[core]})
    for step in (lambda: contract(emulated, core, tiny), lambda: device_commands(emulated, core, models)):
        try:
            found.facts |= step()
        except Failed as failure:
            found.problems.append(f"{core}: {failure}")
    for bundle, place in models:
        for artefact, engine in runs(bundle):
            try:
                there = predict(emulated, core, place, artefact, engine)
                one = compare(bundle, artefact, answers[place, artefact, engine], there)
            except Failed as failure:
                found.problems.append(f"{core}: {place} {artefact} in {engine}: {failure}")
                continue
            one = {"core": core, "model": bundle.folder.name, "artefact": artefact, "engine": engine, **one}
            words = (
                f"{one['model']} {artefact} in {engine}: labels {'equal' if one['labels_equal'] else 'DIFFER'}, "
                f"largest difference {one['largest_difference']:.2g} (allowed {one['bound']:g})"
            )
            say(core, words)
            found.comparisons.append(one)
            if not agrees(one):
                found.problems.append(f"{core}: {words}")
    return found


def install(emulated: Emulated) -> Record:
    """Build the wheel as CI does, put it into a fresh environment inside, weigh what came, add the tests' needs."""
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
    """The wheel alone into a fresh environment, weighed; then the extra and pytest. Weights by package, in megabytes.

    An environment with the very same libraries is kept, and gets the new wheel: emulated, pip takes minutes.
    """
    stamp = emulated.root / VENV[1:] / "made-of.json"
    made_of = (emulated.out / "constraints.txt").read_text() + (CHECKOUT / "pyproject.toml").read_text()
    known = json.loads(stamp.read_text()) if stamp.is_file() else {}
    weigh = [sys.executable, str(CHECKOUT / "scripts" / "weigh_install.py"), "--site"]
    if known.get("made_of") == made_of:
        say("emulated", "installing the wheel beside the libraries of the last time")
        emulated.run("cortex-a72", *pip, "--no-deps", "--force-reinstall", f"/out/dist/{wheel}", offline=False)
    else:
        say("emulated", "installing it in a fresh environment")
        emulated.run("cortex-a72", "python3", "-m", "venv", "--clear", VENV, offline=False)
        emulated.run("cortex-a72", *pip, f"/out/dist/{wheel}", offline=False)
        known = {"made_of": made_of, "packages": list(json.loads(run(*weigh, str(_site(emulated))))["packages"])}
        emulated.run("cortex-a72", *pip, f"/out/dist/{wheel}[litert]", "pytest", offline=False)
        stamp.write_text(json.dumps(known))
    packages = json.loads(run(*weigh, str(_site(emulated))))["packages"]
    packages = {name: size for name, size in packages.items() if name in known["packages"]}
    return {"megabytes": round(sum(packages.values()), 1), "packages": packages}


def _site(emulated: Emulated) -> Path:
    [site] = (emulated.root / VENV[1:]).glob("lib/python3.*/site-packages")
    return site


def contract_on_host(out: Path) -> Path:
    """Run the contract tests here; they leave the tiny models, which are made with onnx and tensorflow, in a folder."""
    say("here", "the engines' contract tests")
    (out / "tiny").mkdir()
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/engines/test_engines.py"]
    run("env", f"MRI_EDGE_TINY={out / 'tiny'}", *pytest, cwd=CHECKOUT)
    return out / "tiny"


def contract(emulated: Emulated, core: str, tiny: Path) -> Record:
    """Run the contract tests there, on the same tiny models; how many passed and which were skipped."""
    pytest = [f"{VENV}/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml=/out/{core}.xml"]
    emulated.run(core, "env", f"MRI_EDGE_TINY=/out/{tiny.name}", *pytest, "/src/tests/engines/test_engines.py")
    suite = ET.parse(emulated.out / f"{core}.xml").getroot()[0]  # noqa: S314 (our own pytest wrote it)
    skipped = sorted({element.get("message", "") for element in suite.iter("skipped")})
    total, missed = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    say(core, f"contract: {total - missed} passed, {missed} skipped ({'; '.join(skipped)})")
    return {"contract": {"passed": total - missed, "skipped": missed, "skipped_because": skipped}}


def device_commands(emulated: Emulated, core: str, models: Models) -> Record:
    """Run what README recommends on a device: doctor, verify and tune, then predict with the profile."""
    doctor = json.loads(emulated.run(core, "mri-edge", "doctor", "--json"))
    # None: the library loads, and the embedded model has nothing for it. The comparisons try it for real.
    works = {row["engine"]: row["works"] for row in doctor["engines"] if row["provider"] == "cpu"}
    if missing := [name for name in ENGINES if works.get(name, False) is False]:
        raise Failed(f"doctor: {', '.join(missing)} does not work: {doctor['engines']}")
    facts = {"instructions": doctor["machine"]["instructions"], "verify": {}, "tune": {}}
    for _, place in models:
        if place.startswith(FURTHER):  # they are large, and tuning runs each candidate several times
            continue
        report = json.loads(emulated.run(core, "mri-edge", "verify", place, "--json"))
        facts["verify"][place] = "agrees" if report["agrees"] else report["first_difference"]
        tuned = json.loads(emulated.run(core, *TUNE, "--model", place))
        chosen = {key: tuned["single"][key] for key in ("artefact", "engine", "threads", "batch")}
        facts["tune"][place] = chosen
        output = emulated.run(core, "sh", "-c", 'mri-edge predict "$0" --model "$1" -v 2>&1', SCAN, place)
        if "ignored" in output:
            raise Failed(f"predict does not take the profile of tune: {output}")
    say(core, f"doctor: {facts['instructions']}; verify: {facts['verify']}; tune: {facts['tune']}")
    return facts


TUNE = ("mri-edge", "tune", "--json", "--seconds", "0.01", "--batch", "1")
SCAN = "/src/examples/phantom-1.jpg"
# All demo scans for the embedded models; one of each label for the others, whose float artefacts take a minute a scan.
FEW = ("mni152-slice-1.jpg", "phantom-1.jpg")


def origin(bundle: Bundle) -> Record:
    """How a model came about, so that the record can be made again."""
    training = bundle.manifest.training
    return {"recipe": training.recipe, "seed": training.seed, "data": training.data_fingerprint}


def runs(bundle: Bundle) -> list[tuple[str, str]]:
    """Each artefact of a bundle with each engine that opens it, the quick ones first."""
    suffixes = {name: engine_files()[name].SUFFIXES for name in ENGINES}
    files = [item.file for item in sorted(bundle.manifest.artefacts, key=lambda item: item.size_bytes)]
    return [(file, name) for file in files for name in ENGINES if file.endswith(suffixes[name])]


def on_host(bundle: Bundle, place: str, artefact: str, engine: str) -> list[Record]:
    """What this machine answers."""
    command = predict_command(str(CHECKOUT), str(bundle.folder), artefact, engine, few=place.startswith(FURTHER))
    return lines(run(str(HOST), *command))


def predict(emulated: Emulated, core: str, place: str, artefact: str, engine: str) -> list[Record]:
    """What the emulated one answers."""
    command = predict_command("/src", place, artefact, engine, few=place.startswith(FURTHER))
    return lines(emulated.run(core, "mri-edge", *command))


def predict_command(checkout: str, model: str, artefact: str, engine: str, *, few: bool) -> list[str]:
    """One command line for both sides. The batch is given, as the profile of tune would give another there."""
    scans = [f"{checkout}/examples/{name}" for name in FEW] if few else [f"{checkout}/examples"]
    return ["predict", *scans, "--json", "--model", model, "--artefact", artefact, "--engine", engine, "--batch", "8"]


def lines(text: str) -> list[Record]:
    """Results of ``predict --json``."""
    return [json.loads(line) for line in text.splitlines()]


def compare(bundle: Bundle, artefact: str, here: list[Record], there: list[Record]) -> Record:
    """Labels and probabilities of the same scans, here and there."""
    names = [[Path(row["file"]).name for row in side] for side in (here, there)]
    if names[0] != names[1] or not here:
        raise Failed(f"other scans: {names}")
    apart = [
        abs(mine["probabilities"][label] - theirs["probabilities"][label])
        for mine, theirs in zip(here, there, strict=True)
        for label in bundle.manifest.labels
    ]
    facts = bundle.artefact(artefact)
    return {
        "sha256": facts.sha256,
        "precision": facts.precision,
        "scans": len(here),
        "labels_equal": [row["label"] for row in here] == [row["label"] for row in there],
        "largest_difference": max(apart),
        "bound": BOUNDS[facts.precision],
    }


def agrees(one: Record) -> bool:
    """Whether a comparison holds; NaN does not."""
    return one["labels_equal"] and one["largest_difference"] <= one["bound"]


def run(*command: str, cwd: Path | None = None) -> str:
    """Standard output of a command that ends well; else Failed with its last words."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=LIMIT, cwd=cwd
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"no answer within {LIMIT} s: {command}") from None
    if done.returncode:
        words = re.sub(r"\s+", " ", (done.stderr + done.stdout)[-1500:])
        raise Failed(f"exit code {done.returncode} of {' '.join(map(str, command[-6:]))}: {words}")
    return done.stdout


def say(where: str, words: str) -> None:
    """A line for the person who waits, with the minutes so far."""
    print(f"[{(time.monotonic() - START) / 60:5.1f} min] {where}: {words}", file=sys.stderr, flush=True)


START = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
