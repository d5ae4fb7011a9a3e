"""``mri-edge info``: show a bundle's manifest in readable form."""

from __future__ import annotations

import click

from mri_edge.authoring.heatmap_score import facts as heatmap_facts
from mri_edge.authoring.intervals import with_interval
from mri_edge.authoring.recalibration import facts as recalibration_facts
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Manifest
from mri_edge.errors import printable
from mri_edge.inference.prediction import NOTICE, stdout_json

from .options import REQUIRE_SIGNATURE, bundle_argument
from .output import table

EXAMPLES = """\b
Examples:
  mri-edge info
  mri-edge info my-bundle --json | jq .training
"""


@click.command(epilog=EXAMPLES)
@bundle_argument
@REQUIRE_SIGNATURE
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def info(model: str, signed_by: str | None, as_json: bool) -> None:
    """Show the contents of a model bundle.

    Without BUNDLE: the embedded model.
    """
    bundle = Bundle.open(model, signed_by=signed_by)
    if as_json:
        click.echo(stdout_json(bundle.manifest.to_plain(), indent=2))
        return
    manifest = bundle.manifest
    click.echo(f"{click.style(manifest.title, bold=True)}  {click.style(printable(str(bundle.folder)), dim=True)}")
    for heading, rows in _facts(manifest):
        click.secho(f"\n{heading}", bold=True)
        for line in table([(_one_line(name), _one_line(value)) for name, value in rows], heading=False):
            click.echo(f"  {line}")
    click.secho(f"\nartifacts{', parity before the recalibration' if manifest.recalibration else ''}", bold=True)
    for line in table(_artifacts(manifest), right=(2, 3, 4)):
        click.echo(f"  {line}")
    click.secho(f"\n{NOTICE}", dim=True)


def _one_line(value: object) -> str:
    """Put a text of the manifest on one line. Control codes are escaped, because the terminal would obey them."""
    return printable(" ".join(str(value).split()))


def _facts(manifest: Manifest) -> list[tuple[str, list[tuple[str, object]]]]:
    prepared, training, creation = manifest.preprocessing, manifest.training, manifest.creation
    threshold = "none: the likeliest label" if manifest.threshold is None else f"{manifest.threshold:.4g}"
    facts: list[tuple[str, list[tuple[str, object]]]] = [
        (
            "answers",
            [
                ("labels", ", ".join(manifest.labels)),
                ("positive", manifest.positive_label or "none"),
                ("threshold", threshold),
            ],
        ),
        (
            "preprocessing",
            [
                ("framing", {"picture": "the whole picture", "head": "the square around the head"}[prepared.framing]),
                ("input", f"{prepared.height} x {prepared.width}, {prepared.resize}, {prepared.channel_order}"),
                ("values", f"scale {prepared.scale:.6g}, mean {prepared.mean}, deviation {prepared.deviation}"),
            ],
        ),
        (
            "training",
            [
                ("recipe", f"{training.recipe}, seed {training.seed}"),
                ("backbone", f"{training.backbone}, weights {training.backbone_weights}"),
                ("images", f"{training.train_images} to train, {training.test_images} to test ({training.split})"),
                ("data", training.data_fingerprint[:16]),
                ("made", f"{creation.created} by: {creation.command}"),
            ],
        ),
    ]
    recalibration = manifest.recalibration
    if recalibration:
        facts.append(("recalibration (figures with 95% intervals)", [*recalibration_facts(manifest)]))
    before = " before the recalibration" if recalibration else ""
    if manifest.metrics:
        figures: list[tuple[str, object]] = [
            (name, f"{with_interval(metric.value, metric.low, metric.high)}, {metric.images} images")
            for name, metric in manifest.metrics.items()
        ]
        facts.append((f"metrics{before} with 95% intervals (methods in the model card)", figures))
    if manifest.heatmaps:
        facts.append(("heatmaps (figures with 95% intervals)", [*heatmap_facts(manifest)]))
    if calibrations := manifest.calibrations():
        rows: list[tuple[str, object]] = [
            (", ".join(files), f"{ranges.method}, {ranges.images} training images, seed {ranges.seed}")
            for ranges, files in calibrations.items()
        ]
        facts.append(("calibration", rows))
    texts = [("intended use", manifest.intended_use), ("limits", manifest.limits), *manifest.licences.items()]
    facts.append(("use and licenses", [(name, text) for name, text in texts if text]))
    return facts


def _artifacts(manifest: Manifest) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("file", "precision", "MB", "max |Δp|", "flips", "parity")]
    for artifact in manifest.artifacts:
        parity = artifact.parity
        figures: tuple[str, ...]
        if parity:
            figures = (f"{parity.max_difference:.2g}", f"{parity.flips}/{parity.images}", parity.verdict)
        else:
            figures = ("", "", "" if artifact.format == "keras" else "not compared")
        size = f"{artifact.size_bytes / 1e6:.2f}"
        rows.append((printable(artifact.file), artifact.precision, size, *figures))
    return rows
