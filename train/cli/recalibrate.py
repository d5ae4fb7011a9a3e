"""``mri-edge recalibrate``: a new bundle with a temperature and a threshold for the scans of one site."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mri_edge.bundles.bundle import EMBEDDED, Bundle
from mri_edge.commands.options import (
    ARTIFACT,
    ENGINE,
    PROVIDER,
    THREADS,
    refuse_typed,
    required_bundle_argument,
    run_options,
)
from mri_edge.commands.output import print_problems, table
from mri_edge.commands.usage import NumberRange
from mri_edge.errors import UsageError, printable
from mri_edge.inference.prediction import stdout_json

from .train import TRAINING, groups_option

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEEDED = ("sklearn", "scipy")
_OF_SCANS = ("prevalence", "sensitivity", "groups", "labels", "artifact", "engine", "provider", "threads")

# Closer to 0 or 1 float32 probabilities of different scans become equal, and no threshold lies between them.
_RAREST = 0.0001

_EPILOG = """\b
Examples:
  mri-edge recalibrate vgg16 --data our-scans/
  mri-edge recalibrate vgg16 --data our-scans/ --prevalence 0.08 --groups patients.csv --out ours
  mri-edge recalibrate vgg16 --data our-scans/ --groups blocks:20
  mri-edge recalibrate vgg16 --data our-scans/ --labels healthy='no tumour',lesion=tumour
  mri-edge recalibrate vgg16 --data our-scans/ --sensitivity 0.98 --artifact model.int8.onnx --json
  mri-edge recalibrate bundles/mine --crossval figures/crossval.json --out bundles/ours

\b
Which scans count: all that were not in the bundle's training (compared by SHA-256); copies count once.
The scans of a group (--groups) count as one.
Without --out: BUNDLE-recalibrated, beside the bundle, or here for an embedded model.
"""


@click.command(epilog=_EPILOG)
@required_bundle_argument
@click.option("--data", type=click.Path(path_type=Path), help="Folder of your labelled scans, one folder a label.")
@click.option(
    "--crossval",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="In place of --data: take the out-of-fold threshold of this crossval.json, from 'mri-edge train --cv'.",
)
@click.option(
    "--prevalence",
    type=NumberRange(_RAREST, 1 - _RAREST),
    help="Proportion of positives where the model will be used. The probabilities are calibrated for it, and precision "
    "and negative predictive value are given. Default: each label has the same weight.",
)
@click.option(
    "--sensitivity",
    type=NumberRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Least sensitivity on the scans that choose the threshold.",
)
@groups_option("Scans that count as one", "near-duplicates")
@TRAINING["labels"]
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the new bundle; see below.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle at --out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of tables.")
@run_options(ARTIFACT, ENGINE, PROVIDER, THREADS)
def recalibrate(
    model: str,
    data: Path | None,
    crossval: Path | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Adapt a model to your own labelled scans: a new bundle, with figures to expect and their intervals.

    Chooses a temperature, which calibrates the probabilities, and a threshold. Both are judged
    on scans that did not choose them. With more than two labels there is a temperature only. The new bundle is not
    signed: sign it with 'mri-edge bundle sign'. A scan that cannot be read is reported, and the exit code is 1.

    Research use only: not a medical device.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(
            f"recalibration needs packages that are not installed: {', '.join(missing)}",
            "pip install 'mri-edge[evaluate]'",
        )
    if (data is None) == (crossval is None):
        received = "neither" if data is None else "both"
        raise UsageError(f"--data or --crossval is needed. Received: {received}", "Name one of them")
    bundle = Bundle.open(model)
    target = out or _default_out(bundle)
    if crossval is not None:
        from mri_edge.train.crossval_threshold import read_threshold, set_threshold

        refuse_typed(_OF_SCANS, "goes with --data, and --crossval has no scans", "Leave it out")
        record = set_threshold(bundle, target, read_threshold(crossval, bundle), overwrite=overwrite)
    elif data is not None:
        from mri_edge.commands.progress import track
        from mri_edge.train.recalibration import recalibrate_bundle

        say = partial(click.echo, err=True)
        record = recalibrate_bundle(bundle, data, target, overwrite=overwrite, track=track, say=say, **options)
    print_problems(record)
    if as_json:
        click.echo(stdout_json(record, indent=1))
    else:
        for line in _threshold_lines(record) if crossval is not None else _lines(record):
            click.echo(printable(line))
    return 1 if record.get("unreadable") else 0


def _default_out(bundle: Bundle) -> Path:
    name = f"{bundle.folder.name.removesuffix('.mribundle')}-recalibrated"
    return Path(name) if bundle.folder.parent == EMBEDDED else bundle.folder.parent / name


def _lines(record: dict[str, Any]) -> Iterator[str]:
    from mri_edge.authoring.recalibration import NAMES
    from mri_edge.train.reports.tables import ran

    data, labels = record["data"], record["labels"]
    counts = ", ".join(
        f"{count} {label} ({independent} independent)"
        for label, count, independent in zip(labels, data["by_label"], data["independent_by_label"], strict=True)
    )
    yield ran(record, "original")
    yield f"{data['folder']}: {data['images']} scans: {counts}"
    prevalence = record["prevalence"]
    calibrated = "each label has the same weight" if prevalence is None else f"for a prevalence of {prevalence:g}"
    yield f"temperature {record['temperature']:.4g}, {calibrated}"
    if len(labels) > 2:
        yield "no threshold: the model has more than two labels, so the answer is the likeliest one"
    else:
        before = (
            "the likeliest label" if record["original_threshold"] is None else f"{record['original_threshold']:.4g}"
        )
        yield f"threshold {record['threshold']:.4g}, for {labels[record['positive']]!r}; before: {before}"
    yield ""
    rows = [("on such scans, 95% intervals", "before", "expected")]
    for name, metric in record["expected"].items():
        rows.append((NAMES.get(name, name), _figure(record["before"][name]), _figure(metric)))
    loss = record["log_loss"]
    rows.append(("log loss of the probabilities", f"{loss['before']:.3f}", f"{loss['expected']:.3f}"))
    yield from table(rows, heading=False)
    yield ""
    yield "Expected: temperature and threshold are chosen on 4/5 of the scans and judged on the rest, five times."
    if len(labels) == 2 and prevalence is None:
        yield "Precision and negative predictive value depend on the prevalence: name it with --prevalence."
    yield from _written(record)


def _threshold_lines(record: dict[str, Any]) -> Iterator[str]:
    before = "the likeliest label" if record["original_threshold"] is None else f"{record['original_threshold']:.4g}"
    yield f"{record['original']}: threshold {record['threshold']:.4g}; before: {before}"
    yield f"chosen: {record['threshold_rule']}"
    yield ""
    rows = [("test images, 95% intervals", "before", "after")]
    for name, metric in record["metrics"].items():
        rows.append((name.replace("_", " "), _figure(record["metrics_before"].get(name)), _figure(metric)))
    yield from table(rows, heading=False)
    yield from _written(record)


def _written(record: dict[str, Any]) -> Iterator[str]:
    yield f"written to {record['bundle']}: {record['model']}"
    yield f"It is not signed. Sign it with: mri-edge bundle sign {record['bundle']} --key KEY"
    yield record["notice"]


def _figure(metric: dict[str, Any] | None) -> str:
    from mri_edge.authoring.intervals import with_interval

    return "" if metric is None else with_interval(metric["value"], metric["low"], metric["high"])
