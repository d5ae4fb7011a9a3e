"""``mri-edge tune``: find the fastest way to run a model on this device, and save it for ``predict``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.decode import to_plain
from mri_edge.device.dirs import profile_folder
from mri_edge.errors import OutputError, printable
from mri_edge.inference.prediction import stdout_json

from .options import PROVIDER, REQUIRE_SIGNATURE, bundle_argument, run_options
from .output import table
from .usage import DAY_S, NumberRange

if TYPE_CHECKING:
    from mri_edge.benchmarking.tuning import Candidate, Tuning
    from mri_edge.inference.selection import RunOptions
    from mri_edge.inference.tuned_profile import Measurement

EXAMPLES = """\b
Examples:
  mri-edge tune
  mri-edge tune --model my-bundle --seconds 3
  mri-edge tune --provider cuda --batch 16 --batch 64 --json
"""


@click.command(epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all measurements.")
@click.option(
    "--seconds", type=NumberRange(0.01, DAY_S), default=1.0, show_default=True, help="Time for each candidate."
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1, 1024),
    multiple=True,
    help="Batch size to try. Default: 1, 4, 8 and that of predict.",
)
@bundle_argument
@REQUIRE_SIGNATURE
@run_options(PROVIDER)
def tune(
    as_json: bool, seconds: float, batches: tuple[int, ...], model: str, signed_by: str | None, run: RunOptions
) -> None:
    """Find the fastest way to run a model on this device, and save it for predict.

    Measures all combinations of engines, artifacts that did not fail their parity gate, threads and batch sizes in
    separate processes, the fastest of them three times. The profile is valid until the CPU, the number of cores, a
    library or the model changes. Then predict logs a warning and uses its default rule.
    """
    from mri_edge.benchmarking.tuning import default_batches, default_of
    from mri_edge.benchmarking.tuning import tune as measure

    _check_writable(profile_folder())
    bundle = Bundle.open(model, signed_by=signed_by)
    tuning = measure(
        bundle,
        signed_by=signed_by,
        provider=run.provider,
        batches=batches or default_batches(bundle, run.provider),
        seconds=seconds,
        track=_track,
    )
    path = tuning.profile.save()
    defaults = {
        name: default_of(tuning.profile, bundle, provider=run.provider, many=name == "many")
        for name in ("single", "many")
    }
    if as_json:
        record = {
            "profile": str(path),
            "single": to_plain(_best(tuning, run.provider, many=False)),
            "many": to_plain(_best(tuning, run.provider, many=True)),
            "default": {name: None if found is None else to_plain(found) for name, found in defaults.items()},
            **to_plain(tuning.profile),
            "failed": [{**to_plain(subject), "problem": problem} for subject, problem in tuning.failed],
        }
        click.echo(stdout_json(record, indent=2))
        return
    rows = [("ms per scan", "batch", "threads", "engine", "artifact")]
    for measurement in tuning.profile.measurements:
        rows.append(
            (
                f"{measurement.ms_per_scan:.2f}",
                str(measurement.batch),
                str(measurement.threads),
                measurement.engine,
                measurement.artifact,
            )
        )
    for candidate, problem in tuning.failed:
        why = click.style(f"{candidate.artifact}: {printable(problem)}", fg="yellow")
        rows.append(("failed", str(candidate.batch), str(candidate.threads), candidate.engine, why))
    for line in table(rows, right=(0, 1, 2)):
        click.echo(line)
    for name, label in (("single", "single scan:"), ("many", "many scans: ")):
        best = _best(tuning, run.provider, many=name == "many")
        click.echo(f"{label} {_describe(best)}{_gain(best, defaults[name])}")
    click.echo(f"saved in {path}")


def _check_writable(folder: Path) -> None:
    """Check that the profile can be written, because the measurement takes minutes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot store a device profile there ({error.strerror})",
            "Name another folder in MRI_EDGE_PROFILE_DIR, for 'mri-edge predict' too",
        ) from error


def _track(candidates: Sequence[Candidate], label: str) -> Iterable[Candidate]:
    """Show a progress bar on a terminal, and one line per candidate elsewhere."""
    from .progress import at_terminal, track

    if at_terminal(sys.stderr):
        yield from track(candidates, label, len(candidates))
        return
    for number, candidate in enumerate(candidates, 1):
        how = f"{candidate.artifact} in {candidate.engine}, threads {candidate.threads}, batch {candidate.batch}"
        click.echo(f"mri-edge: {label}, {number} of {len(candidates)}: {how}", err=True)
        yield candidate


def _best(tuning: Tuning, provider: str, *, many: bool) -> Measurement:
    best = tuning.profile.best(provider=provider, many=many)
    assert best is not None, "a profile has at least one measurement of a single scan"  # noqa: S101
    return best


def _describe(measurement: Measurement) -> str:
    where = f"{measurement.artifact} in {measurement.engine} on {measurement.ran}"
    return (
        f"{where}, threads {measurement.threads}, batch {measurement.batch}: {measurement.ms_per_scan:.2f} ms per scan"
    )


def _gain(best: Measurement, default: Measurement | None) -> str:
    """Return how much faster a measurement is than what runs without a profile."""
    if default is None:
        return ""
    if default == best:
        return ", as without a profile"
    how = f"{default.artifact} in {default.engine}, threads {default.threads}, batch {default.batch}"
    return f", {default.ms_per_scan / best.ms_per_scan:.2f} times as fast as without a profile ({how})"
