"""Run mri-edge on emulated 64-bit ARM processors, and compare every probability with this machine's.

    make test-arm64                                 needs root on a Debian, see root.sh
    python tests/arm64/check.py --root DIR [BUNDLE...] [--record FILE]

On each core: `doctor`, `verify`, the engines' contract tests, `predict` on the demo scans with every embedded
model and every BUNDLE, each artifact in each engine, a short `tune`, and `node` from a series to its report. After the
installation there is no network, except for `node`, which this machine reaches on the loopback interface.
Exit code: 0 if everything agrees, 1 if something differs, 2 if this machine cannot emulate ARM. Emulated times say
nothing about a real board.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mri_edge.bundles.bundle import Bundle, embedded_models
from mri_edge.engines import engine_files

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # the test of this script imports it from elsewhere
import dicom_node
from emulated import CHECKOUT, VENV, Emulated, Failed, Record, install, run, say

sys.path.remove(str(HERE))
if TYPE_CHECKING:
    from pydicom import Dataset

HOST = Path(sys.executable).with_name("mri-edge")
FURTHER = "/bundles/"  # in the emulated system
CORES = {"cortex-a72": "Raspberry Pi 4: no dot products", "cortex-a76": "Raspberry Pi 5: dot products"}
ENGINES = ("onnxruntime", "litert")
# The largest difference of a probability, by precision. float32: other kernels sum in another order. float16: the limit
# of export; the A76 computes in half precision where x86 widens to float32 (2.4e-3 measured). dynamic: each run sets
# its own ranges, and the kernels round differently (6.6e-4 measured). int8: sums of integers are exact on both;
# the last layer is float (1.2e-7 measured).
BOUNDS = {"float32": 1e-5, "float16": 5e-3, "dynamic": 5e-3, "int8": 1e-5}

Models = list[tuple[Bundle, str]]  # each with its name, or its folder in the emulated system


def main() -> int:
    """Run everything, and print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="further bundles to compare")
    parser.add_argument("--root", type=Path, required=True, help="folder of the ARM Debian; created if missing")
    parser.add_argument("--suite", default="bookworm", help="the suite of Debian to install")
    parser.add_argument("--core", action="append", choices=CORES, help="default: all")
    parser.add_argument("--record", type=Path, help="write the findings to this file, as JSON")
    arguments = parser.parse_args()
    installed = subprocess.run([HERE / "root.sh", arguments.root, arguments.suite], check=False)
    if installed.returncode:
        return installed.returncode
    out = arguments.root.resolve().with_name(f"{arguments.root.name}.out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    embedded = [Bundle.open(name) for name in embedded_models()]
    further = [Bundle.open(folder.resolve()) for folder in arguments.bundles]
    # In the emulated system the name of an embedded model finds the one in the installed wheel.
    places = {bundle.folder: f"{FURTHER}{i}" for i, bundle in enumerate(further)}
    models = [(bundle, bundle.folder.name) for bundle in embedded]
    models += [(bundle, places[bundle.folder]) for bundle in further]
    emulated = Emulated(arguments.root.resolve(), out, {CHECKOUT: "/src", **places})

    record = install(emulated)
    tiny = contract_on_host(out)
    answers = {(place, *run): on_host(bundle, place, *run) for bundle, place in models for run in runs(bundle)}
    say("here", "the node")
    report = received((HOST,), out / "node-here")
    cores = arguments.core or list(CORES)
    with ThreadPoolExecutor(len(cores)) as pool:
        examined = list(pool.map(lambda core: examine(emulated, core, tiny, models, answers, report), cores))
    record["models"] = {bundle.folder.name: origin(bundle) for bundle, _ in models}
    record["cores"] = {core: findings.facts for core, findings in zip(cores, examined, strict=True)}
    record["comparisons"] = [row for findings in examined for row in findings.comparisons]
    problems = [problem for findings in examined for problem in findings.problems]
    record["problems"] = problems
    if arguments.record:
        arguments.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for problem in problems:
        say("PROBLEM", problem)
    say("all", "agrees" if not problems else "DOES NOT agree")
    return 1 if problems else 0


@dataclass
class Findings:
    """The findings on one core."""

    facts: Record = field(default_factory=dict)
    comparisons: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def examine(
    emulated: Emulated, core: str, tiny: Path, models: Models, answers: dict[tuple[str, ...], Any], report: Dataset
) -> Findings:
    """Run every step on a core; a failure ends only its own step."""
    findings = Findings({"board": CORES[core]})
    for step in (
        lambda: node(emulated, core, report),
        lambda: contract(emulated, core, tiny),
        lambda: device_commands(emulated, core, models),
    ):
        try:
            findings.facts |= step()
        except Failed as failure:
            findings.problems.append(f"{core}: {failure}")
    for bundle, place in models:
        for artifact, engine in runs(bundle):
            try:
                there = predict(emulated, core, place, artifact, engine)
                compared = compare(bundle, artifact, answers[place, artifact, engine], there)
            except Failed as failure:
                findings.problems.append(f"{core}: {place} {artifact} in {engine}: {failure}")
                continue
            row = {"core": core, "model": bundle.folder.name, "artefact": artifact, "engine": engine, **compared}
            line = (
                f"{row['model']} {artifact} in {engine}: labels {'equal' if row['labels_equal'] else 'DIFFER'}, "
                f"largest difference {row['largest_difference']:.2g} (allowed {row['bound']:g})"
            )
            say(core, line)
            findings.comparisons.append(row)
            if not agrees(row):
                findings.problems.append(f"{core}: {line}")
    return findings


def contract_on_host(out: Path) -> Path:
    """Run the contract tests here; return the folder with the tiny models that they make with onnx and TensorFlow."""
    say("here", "the engines' contract tests")
    (out / "tiny").mkdir()
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/engines/test_engines.py"]
    run("env", f"MRI_EDGE_TINY={out / 'tiny'}", *pytest, cwd=CHECKOUT)
    return out / "tiny"


def contract(emulated: Emulated, core: str, tiny: Path) -> Record:
    """Run the contract tests on a core with the same tiny models; return the numbers of passed and skipped."""
    pytest = [f"{VENV}/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml=/out/{core}.xml"]
    emulated.run(core, "env", f"MRI_EDGE_TINY=/out/{tiny.name}", *pytest, "/src/tests/engines/test_engines.py")
    suite = ET.parse(emulated.out / f"{core}.xml").getroot()[0]  # noqa: S314 (our own pytest wrote it)
    skipped = sorted({test.get("message", "") for test in suite.iter("skipped")})
    total, missed = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    say(core, f"contract tests: {total - missed} passed, {missed} skipped ({'; '.join(skipped)})")
    return {"contract": {"passed": total - missed, "skipped": missed, "skipped_because": skipped}}


def device_commands(emulated: Emulated, core: str, models: Models) -> Record:
    """Run doctor, verify and tune as deploy/README.md says, and check that predict uses the profile of tune."""
    doctor = json.loads(emulated.run(core, "mri-edge", "doctor", "--json"))
    # None: the library loads, but the embedded model has no artifact for it. The comparisons run it.
    works = {row["engine"]: row["works"] for row in doctor["engines"] if row["provider"] == "cpu"}
    if missing := [name for name in ENGINES if works.get(name, False) is False]:
        raise Failed(f"doctor: these engines do not work: {', '.join(missing)}: {doctor['engines']}")
    facts = {"instructions": doctor["machine"]["instructions"], "verify": {}, "tune": {}}
    for _, place in models:
        if place.startswith(FURTHER):  # they are large, and tuning runs each candidate several times
            continue
        report = json.loads(emulated.run(core, "mri-edge", "verify", place, "--json"))
        facts["verify"][place] = "agrees" if report["agrees"] else report["first_difference"]
        tuned = json.loads(emulated.run(core, *TUNE, "--model", place))
        chosen = {key: tuned["single"][key] for key in ("artefact", "engine", "threads", "batch")}
        facts["tune"][place] = chosen
        printed = emulated.run(core, "sh", "-c", 'mri-edge predict "$0" --model "$1" -v 2>&1', SCAN, place)
        if "ignored" in printed:
            raise Failed(f"predict does not use the profile of tune: {printed}")
    say(core, f"doctor: {facts['instructions']}; verify: {facts['verify']}; tune: {facts['tune']}")
    return facts


TUNE = ("mri-edge", "tune", "--json", "--seconds", "0.01", "--batch", "1")
SCAN = "/src/examples/phantom-1.jpg"
# All demo scans for the embedded models; one of each label for the others, whose float artifacts take a minute a scan.
FEW = ("mni152-slice-1.jpg", "phantom-1.jpg")


def node(emulated: Emulated, core: str, here: Dataset) -> Record:
    """Compare the report of a node on a core with that of the node on this machine."""
    there = received(emulated.command(core, "mri-edge", offline=False), emulated.out / f"node-{core}")
    try:
        difference = dicom_node.compare_reports(here, there)
    except ValueError as error:
        raise Failed(f"node: {error}") from None
    bound = BOUNDS[Bundle.open(dicom_node.MODEL).artifact(dicom_node.ARTIFACT).precision]
    if not difference <= bound:
        raise Failed(f"node: the probability differs by {difference:.2g} (allowed {bound:g})")
    say(core, f"node: the same report, largest difference {difference:.2g} (allowed {bound:g})")
    facts = {"series": dicom_node.SERIES, "peers": dicom_node.PEERS, "model": dicom_node.MODEL}
    facts |= {"artefact": dicom_node.ARTIFACT, "report_equal": True}
    return {"node": {**facts, "largest_difference": difference, "bound": bound}}


def received(program: Sequence[object], folder: Path) -> Dataset:
    """Return the report of a node that ``program`` runs. Raises Failed if there is none."""
    try:
        return dicom_node.receive_report(program, folder, dicom_node.load_series())
    except (RuntimeError, TimeoutError, OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"node: {error}") from error


def origin(bundle: Bundle) -> Record:
    """Return how a model was trained, so that the record can be made again."""
    training = bundle.manifest.training
    return {"recipe": training.recipe, "seed": training.seed, "data": training.data_fingerprint}


def runs(bundle: Bundle) -> list[tuple[str, str]]:
    """List each artifact of a bundle with each engine that opens it, the smallest first."""
    suffixes = {name: engine_files()[name].SUFFIXES for name in ENGINES}
    files = [artifact.file for artifact in sorted(bundle.manifest.artifacts, key=lambda artifact: artifact.size_bytes)]
    return [(file, name) for file in files for name in ENGINES if file.endswith(suffixes[name])]


def on_host(bundle: Bundle, place: str, artifact: str, engine: str) -> list[Record]:
    """Return the results of ``predict`` on this machine."""
    command = predict_command(str(CHECKOUT), str(bundle.folder), artifact, engine, few=place.startswith(FURTHER))
    return lines(run(str(HOST), *command))


def predict(emulated: Emulated, core: str, place: str, artifact: str, engine: str) -> list[Record]:
    """Return the results of ``predict`` on an emulated core."""
    command = predict_command("/src", place, artifact, engine, few=place.startswith(FURTHER))
    return lines(emulated.run(core, "mri-edge", *command))


def predict_command(checkout: str, model: str, artifact: str, engine: str, *, few: bool) -> list[str]:
    """Return the arguments of ``predict`` for both machines; --batch is set because a profile of tune may differ."""
    scans = [f"{checkout}/examples/{name}" for name in FEW] if few else [f"{checkout}/examples"]
    return ["predict", *scans, "--json", "--model", model, "--artifact", artifact, "--engine", engine, "--batch", "8"]


def lines(text: str) -> list[Record]:
    """Parse the results of ``predict --json``."""
    return [json.loads(line) for line in text.splitlines()]


def compare(bundle: Bundle, artifact: str, here: list[Record], there: list[Record]) -> Record:
    """Compare labels and probabilities of the same scans on both machines."""
    names = [[Path(result["file"]).name for result in results] for results in (here, there)]
    if names[0] != names[1] or not here:
        raise Failed(f"other scans: {names}")
    differences = [
        abs(expected["probabilities"][label] - received["probabilities"][label])
        for expected, received in zip(here, there, strict=True)
        for label in bundle.manifest.labels
    ]
    facts = bundle.artifact(artifact)
    return {
        "sha256": facts.sha256,
        "precision": facts.precision,
        "scans": len(here),
        "labels_equal": [result["label"] for result in here] == [result["label"] for result in there],
        "largest_difference": max(differences),
        "bound": BOUNDS[facts.precision],
    }


def agrees(row: Record) -> bool:
    """Whether the labels are equal and the difference is within the bound. NaN is not."""
    return row["labels_equal"] and row["largest_difference"] <= row["bound"]


if __name__ == "__main__":
    sys.exit(main())
