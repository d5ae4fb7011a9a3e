"""``mri-edge doctor``: describe this machine, and test which engines and providers work on it."""

from __future__ import annotations

import platform
import struct
from dataclasses import asdict, dataclass, replace

import click

from mri_edge import __version__
from mri_edge.benchmarking.trial import Outcome, Trial, attempt
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Artifact
from mri_edge.defaults import find_defaults
from mri_edge.device.cpu import available_cpus
from mri_edge.device.machine import board, cpu, installed, is_32_bit_arm, memory
from mri_edge.engines import EngineFile, engine_files, remedy
from mri_edge.errors import BundleError, EngineError, MriEdgeError
from mri_edge.inference.prediction import stdout_json
from mri_edge.inference.selection import allowed

from .options import MODEL, VERBOSE
from .output import table

_TIME_LIMIT = 120  # seconds; the first CUDA session takes tens of seconds

EXAMPLES = """\b
Examples:
  mri-edge doctor
  mri-edge doctor --json --model my-bundle
"""


@dataclass(frozen=True)
class Finding:
    """One engine on one provider. ``works`` is None if it could not be tried."""

    engine: str
    version: str
    provider: str
    works: bool | None
    detail: str


@click.command(epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@MODEL
@VERBOSE
def doctor(as_json: bool, model: str) -> int:
    """Show which engines and providers work on this machine.

    Each engine runs an artifact of the model in a separate process, so that a crash of its library is
    reported too. The exit code is 3 if the model cannot be used, 4 if no engine runs it.
    """
    facts, problems = _facts(), _problems()
    bundle = None
    try:
        bundle = Bundle.open(model)
        bundle.verify()
    except MriEdgeError as error:
        problems.append(f"no model to try the engines with: {error}")
        bundle = None
    findings = [
        _examine(file, provider, bundle)
        for file in engine_files().values()
        if file.MODULE
        # Without a model only the library is imported, which says nothing about providers.
        for provider in (file.PROVIDERS if bundle else file.PROVIDERS[:1])
    ]
    if as_json:
        record = {"machine": facts, "problems": problems, "engines": [asdict(finding) for finding in findings]}
        click.echo(stdout_json(record, indent=2))
    else:
        _print(facts, problems, findings)
    if any(finding.works for finding in findings):
        return 0
    usable = any(_artifact_for(file, "cpu", bundle) for file in engine_files().values() if file.MODULE)
    return EngineError.exit_code if usable else BundleError.exit_code


def _facts() -> dict[str, str]:
    ram = memory()
    processor = cpu()
    found = find_defaults()
    facts = {
        "mri-edge": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {8 * struct.calcsize('P')} bits)",
        "system": f"{platform.system()} {platform.release()}, {processor.architecture}",
        "board": board() or "",
        "cpu": processor.model,
        "instructions": ", ".join(sorted(processor.instructions)) or "unknown on this system",
        "int8": "fast: dot products of 8-bit integers" if processor.multiplies_int8_fast else "no dot products known",
        "cores": f"{available_cpus()} may be used",
        "defaults": f"from {found[0]} for {', '.join(found[1])}" if found else "",
        "memory": _memory(ram.usable, ram.available, limited=ram.limit is not None) if ram else "",
    }
    return {name: value for name, value in facts.items() if value}


def _memory(usable: int, available: int, *, limited: bool) -> str:
    source = "the container's limit" if limited else "in the machine"
    return f"{usable / 2**30:.1f} GiB {source}, {available / 2**30:.1f} GiB free in the machine"


def _problems() -> list[str]:
    problems = []
    for file in engine_files().values():
        found = installed(file.PACKAGES)
        if len(found) > 1:
            names = " and ".join(f"{name} {version}" for name, version in found.items())
            problems.append(
                f"{names} are both installed and overwrite each other: pip uninstall {' '.join(found)}, "
                "then install the one you want"
            )
    if is_32_bit_arm():
        problems.append("no engine has wheels for 32-bit ARM: use a 64-bit system image")
    return problems


def _examine(file: EngineFile, provider: str, bundle: Bundle | None) -> Finding:
    version = ", ".join(installed(file.PACKAGES).values())
    if missing := file.missing():
        return Finding(file.NAME, version, provider, False, f"{missing}. {remedy(file)}")
    artifact = _artifact_for(file, provider, bundle)
    trial = Trial(file.NAME, provider=provider)
    if bundle and artifact:
        trial = replace(trial, bundle=str(bundle.folder), artifact=artifact.file)
    works, detail = _judge(attempt(trial, time_limit=_TIME_LIMIT), artifact)
    return Finding(file.NAME, version, provider, works, detail)


def _artifact_for(file: EngineFile, provider: str, bundle: Bundle | None) -> Artifact | None:
    """Return the smallest artifact that the engine opens; a float32 one for accelerators, as few run all of int8."""
    usable = [artifact for artifact in allowed(bundle) if artifact.file.endswith(file.SUFFIXES)] if bundle else []
    return min(
        usable,
        key=lambda artifact: (provider != "cpu" and artifact.precision != "float32", artifact.size_bytes),
        default=None,
    )


def _judge(outcome: Outcome, artifact: Artifact | None) -> tuple[bool | None, str]:
    if outcome.problem:
        return False, outcome.problem
    if artifact is None:
        return None, "the library loads; no artifact to try it with"
    return (
        True,
        f"{outcome.provider}, {artifact.file}: opened in {outcome.open_ms:.0f} ms, first run {outcome.ms:.0f} ms",
    )


def _print(facts: dict[str, str], problems: list[str], findings: list[Finding]) -> None:
    """Print tables with the longest column last, so that reasons stay on one line and can be copied."""
    for line in table(list(facts.items()), heading=False):
        click.echo(line)
    answers = {True: ("yes", "green"), False: ("no", "yellow"), None: ("?", "white")}
    rows: list[tuple[str, ...]] = [("engine", "version", "provider", "works", "detail")]
    for finding in findings:
        answer, color = answers[finding.works]
        rows.append((finding.engine, finding.version, finding.provider, click.style(answer, fg=color), finding.detail))
    click.echo()
    for line in table(rows):
        click.echo(line)
    for problem in problems:
        click.secho(f"\nPROBLEM  {problem}", fg="red")
