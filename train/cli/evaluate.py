"""``mri-edge evaluate``: score an artifact of a bundle on labelled scans."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mri_edge.authoring.runs import choose_bundle, last_trained, remembered_data
from mri_edge.bundles.bundle import DEFAULT_MODEL, Bundle
from mri_edge.commands.options import (
    ARTIFACT,
    ENGINE,
    PROVIDER,
    THREADS,
    complete_models,
    reading_options,
    refuse_typed,
    run_options,
)
from mri_edge.errors import UsageError

from .publish import prepare_folder, publish
from .train import RECIPE, TRAINING, train, training_options

if TYPE_CHECKING:
    from mri_edge.inference.selection import RunOptions
    from mri_edge.train.evaluation.evaluate import Role

_NEEDED = ("sklearn", "scipy", "matplotlib", "jinja2")
_OF_TRAINING = {"recipe_name", *TRAINING} - {"labels", "groups"}
_OF_A_MODEL = {
    "position",
    "model",
    "role",
    "as_json",
    "artifact",
    "engine",
    "provider",
    "threads",
    "window",
    "any_modality",
}

_EPILOG = """\b
Examples:
  mri-edge evaluate
  mri-edge evaluate --data elsewhere/
  mri-edge evaluate bundles/mine --artifact model.int8.tflite --data elsewhere/ --out report/
  mri-edge evaluate vgg16 --data scans/ --json > evaluation.json
  mri-edge evaluate bundles/mine --data elsewhere/ --labels healthy='no tumour',lesion=tumour
  mri-edge evaluate bundles/mine --data elsewhere/ --groups patients.csv
  mri-edge evaluate bundles/mine --heatmaps --data healthy/ --out heatmaps/ --record
  mri-edge evaluate --cv 5 --recipe robust --data scans/ --out figures/

\b
Without BUNDLE: the bundle in runs/ that was trained last, or the embedded default model.
Without --data: the folder that the bundle was trained on, if it was trained on this machine.

\b
Which images are scored (compared by SHA-256 with the bundle's split record):
  the folder that training used   its test images
  other images                    all that were not used in training
  --role all                      every image; the report says so

\b
--heatmaps draws lesions in healthy scans that were not in training, and compares the heatmaps with their places.
--data is then a folder of healthy scans, or one with a folder per class, of which the healthy scans are used.

The training options (--recipe to --overwrite) require --cv, except two. --labels maps folders with other names than
in training to the labels of the model. --groups names the scans that are not independent, for the intervals; without
it, the test images have the groups of the training. --cv has no BUNDLE, and takes none of the other options but --data
and --out.
"""


@click.command(epilog=_EPILOG)
@click.argument("position", metavar="[BUNDLE]", required=False, shell_complete=complete_models)
@click.option(
    "--model",
    metavar="BUNDLE",
    envvar="MRI_EDGE_MODEL",
    show_envvar=True,
    shell_complete=complete_models,
    help="The same as BUNDLE.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder with one folder of pictures per class.")
@click.option("--role", type=click.Choice(["test", "all"]), help="Images to score.  [default: see below]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for evaluation.json and evaluation.html.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--cv",
    metavar="FOLDS",
    help="Score a recipe instead of a model, by a cross-validation that keeps groups together (--groups); 'sources' "
    "leaves out one source at a time. Writes crossval.json to --out.",
)
@click.option("--heatmaps", is_flag=True, help="Score the heatmaps instead, on lesions drawn in healthy scans.")
@click.option(
    "--scans",
    type=click.IntRange(1),
    help="With --heatmaps: number of scans in which lesions are drawn.  [default: 120]",
)
@click.option(
    "--record", "record_it", is_flag=True, help="With --heatmaps: store the figures in the bundle and its model card."
)
@RECIPE
@training_options
@run_options(ARTIFACT, ENGINE, PROVIDER, THREADS)
@reading_options
@click.pass_context
def evaluate(
    ctx: click.Context,
    /,
    position: str | None,
    model: str | None,
    data: Path | None,
    role: Role | None,
    out: Path | None,
    as_json: bool,
    cv: str | None,
    heatmaps: bool,
    scans: int | None,
    record_it: bool,
    recipe_name: str,
    labels: str | None,
    run: RunOptions,
    **training: Any,
) -> int:
    """Score a model on labelled scans: figures with intervals, mistakes by file.

    Scores at the threshold in the manifest. Any artifact can be scored, in any engine that runs it; only
    model.keras needs Keras. Scans that cannot be read are reported, the others are scored, and the exit
    code is 1.

    Research use only: not a medical device.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(
            f"evaluation needs packages that are not installed: {', '.join(missing)}",
            "pip install 'mri-edge[evaluate]'",
        )
    if heatmaps and cv is not None:
        raise UsageError("--heatmaps scores a model, and --cv a recipe", "Omit one of them")
    if heatmaps and training["groups"] is not None:
        raise UsageError("--groups has no effect here: --heatmaps groups scans itself", "Omit --groups")
    if not heatmaps and (record_it or scans is not None):
        raise UsageError(f"{'--record' if record_it else '--scans'} needs --heatmaps", "Add --heatmaps")
    if cv is not None:
        refuse_typed(_OF_A_MODEL, "applies to a trained model, and --cv trains its own", "Omit one of them")
        code: int = ctx.invoke(train, data=data, out=out, recipe_name=recipe_name, cv=cv, labels=labels, **training)
        return code
    refuse_typed(_OF_TRAINING, "applies to training, and this model is trained already", "Use it with --cv")
    from mri_edge.commands.progress import track
    from mri_edge.train.evaluation.evaluate import evaluate as score
    from mri_edge.train.reports.evaluation_report import evaluation_page, print_evaluation

    if position and ctx.get_parameter_source("model") is ParameterSource.ENVIRONMENT:
        model = None
    bundle = _bundle_to_score(choose_bundle(position, model))
    if data is None:
        data = remembered_data(bundle)
        click.echo(f"scoring on its training folder, {data}", err=True)
    if heatmaps:
        from .heatmaps import score_heatmaps

        return score_heatmaps(
            bundle, data, out, role=role, labels=labels, limit=scans, run=run, as_json=as_json, record_it=record_it
        )
    prepare_folder(out)
    record = score(
        bundle,
        data,
        role=role,
        labels=labels,
        groups=training["groups"],
        track=track,
        say=lambda text: click.echo(text, err=True),
        run=run,
    )
    return publish(
        record,
        out,
        "evaluation",
        page=lambda: evaluation_page(record),
        print_tables=print_evaluation,
        as_json=as_json,
    )


def _bundle_to_score(named: str | None) -> Bundle:
    if named is not None:
        return Bundle.open(named)
    found = last_trained()
    if found is None:
        return Bundle.open(DEFAULT_MODEL)
    click.echo(f"scoring {found.folder}, trained last ({found.manifest.creation.created})", err=True)
    return found
