"""``mri-edge doctor``: what this machine is, and which engines and providers really work on it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata

import click

from .. import __version__
from ..cpu import available_cpus
from ..engines import engine_files

# Tried in a process of its own: a library that dies of an illegal instruction is a finding, not a crash.
_PROBE = """
import json, sys
from pathlib import Path
import numpy
from mri_edge import Bundle, MriEdgeError
from mri_edge.engines import open_engine
engine, provider = sys.argv[1:]
bundle = Bundle.open()
artefact = next(one for one in bundle.manifest.artefacts if one.format == "onnx")
try:
    opened = open_engine(bundle.path_of(artefact), engine=engine, provider=provider)
    opened.run(numpy.zeros((1, *opened.input.shape[1:]), numpy.uint8))
    print(json.dumps([True, opened.provider]))
except MriEdgeError as error:
    print(json.dumps([False, error.problem]))
"""
_TIME_LIMIT = 120  # seconds; a first CUDA session takes tens of them
_ONNX_WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


@click.command(epilog="\b\nExample:\n  mri-edge doctor --json")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool) -> None:
    """Say which engines and providers work on this machine.

    Each is tried in a process of its own.
    """
    facts = _machine()
    tried = [_try(name, provider) for name, one in engine_files().items() for provider in one.PROVIDERS]
    if as_json:
        click.echo(json.dumps({**facts, "engines": tried}, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    for name, value in facts.items():
        console.print(f"{name:<10}  {value}", markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("engine", "provider", "works", "detail"):
        table.add_column(heading, overflow="fold")
    for one in tried:
        works = "[green]yes[/]" if one["works"] else "[yellow]no[/]"
        table.add_row(str(one["engine"]), str(one["provider"]), works, str(one["detail"]))
    console.print(table)


def _machine() -> dict[str, str]:
    facts = {
        "mri-edge": __version__,
        "python": f"{platform.python_version()} ({platform.architecture()[0]})",
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "cores": f"{available_cpus()} may be used",
    }
    wheels = [f"{name} {version}" for name in _ONNX_WHEELS if (version := _version(name))]
    if len(wheels) > 1:
        wheels.append("PROBLEM: they overwrite one another; uninstall all, then install one")
    facts["onnx wheels"] = ", ".join(wheels) or "none"
    return facts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _try(engine: str, provider: str) -> dict[str, object]:
    missing = engine_files()[engine].missing()
    if missing:
        works, detail = False, missing
    elif not any(suffix == ".onnx" for suffix in engine_files()[engine].SUFFIXES):
        works, detail = True, "installed (the embedded model has no artefact to try it with)"
    else:
        works, detail = _probe(engine, provider)
    return {"engine": engine, "provider": provider, "works": works, "detail": detail}


def _probe(engine: str, provider: str) -> tuple[bool, str]:
    try:
        done = subprocess.run(  # noqa: S603 (our own program, no shell)
            [sys.executable, "-c", _PROBE, engine, provider],
            capture_output=True,
            text=True,
            timeout=_TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {_TIME_LIMIT} s"
    if done.returncode < 0:
        return False, f"killed by signal {-done.returncode}: the library does not fit this CPU or driver"
    if done.returncode:
        return False, (done.stderr.strip().splitlines() or ["failed without a word"])[-1]
    works, detail = json.loads(done.stdout.splitlines()[-1])
    return bool(works), str(detail)
