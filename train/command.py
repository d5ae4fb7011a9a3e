"""``mri-edge train``: from a folder of scans to a bundle with a Keras model."""

from __future__ import annotations

from pathlib import Path

import click
from mri_edge.errors import UsageError
from mri_edge.prediction import decide

from .options import RECIPE, training_options

_EPILOG = """\b
Examples:
  mri-edge train --data scans/ --out bundle/
  mri-edge train --recipe robust --data collections/ --out robust/ --backbone-weights torchvision
  mri-edge train --recipe small --teacher vgg16 --data collections/ --out small/
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="Folder with one folder of pictures a class."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new bundle.")
@RECIPE
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="BUNDLE",
    help="Recipe 'small': whose answers it learns, a bundle or an embedded model. May be repeated: their mean.",
)
@click.option("--name", help="Name of the model in the manifest.  [default: vgg16, or small]")
@click.option(
    "--cv",
    metavar="FOLDS",
    help="No bundle, but figures at --out of a cross-validation: a number of folds that keep "
    "near-duplicates together, or 'sources' to leave out one source at a time.",
)
@click.option(
    "--fold",
    "only",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="Recipe 'small' with --cv: train this fold alone, so that several machines can share the work. --out "
    "holds the answers of each; the figures are of the folds that lie there.",
)
@click.option(
    "--split",
    type=click.Choice(("reference", "stratified", "grouped")),
    help="Who tests; grouped divides neither near-duplicates nor a patient (--groups).  "
    "[default: reference, with --groups grouped]",
)
@training_options
def train(
    data: Path,
    out: Path,
    recipe_name: str,
    backbone_weights: str,
    teachers: tuple[str, ...],
    positive: str | None,
    seed: int,
    epochs: int | None,
    name: str | None,
    cv: str | None,
    only: int | None,
    excluded: tuple[str, ...],
    split: str | None,
    groups: Path | None,
    resume: bool,
    overwrite: bool,
) -> None:
    """Train a model from a folder of scans and write it as a bundle.

    The folder holds one folder a class, or folders of such folders. The classification report is
    printed; progress goes to the screen.
    """
    import json
    from dataclasses import replace

    from .framework import load_keras
    from .recipe import find_recipe

    recipe = find_recipe(recipe_name)
    if epochs:
        recipe = replace(recipe, epochs=epochs)
    _check_options(recipe.name, teachers=teachers, cv=cv, only=only, excluded=excluded, split=split, groups=groups)
    load_keras()
    from .metrics import report_text
    from .robust_run import cross_validate_robust, train_robust_bundle
    from .run import train_bundle

    chosen = {"backbone_weights": backbone_weights, "seed": seed, "positive": positive}
    heard = {
        "excluded": excluded,
        "groups": groups,
        "overwrite": overwrite,
        "resume": resume,
        "say": lambda text: click.echo(text, err=True),
    }
    if cv is not None:
        folds = None if cv == "sources" else int(cv)
        from .reference_crossval import cross_validate_reference
        from .small_crossval import cross_validate_small

        if recipe.name == "small":  # it goes on by itself with what lies at --out
            figures = cross_validate_small(data, out, recipe, folds=folds, only=only, **chosen)
        else:
            cross_validate = cross_validate_robust if recipe.name == "robust" else cross_validate_reference
            figures = cross_validate(data, out, recipe, folds=folds, **chosen, **heard)
        compared = ("student_minus_teacher", "threshold", "student_minus_teacher_at_threshold_of_other_folds")
        shown = ("folds_scored", "pooled", *compared, "stress")
        click.echo(json.dumps({name: figures[name] for name in shown if name in figures}, indent=1))
        return
    if recipe.name == "small":
        from .small_run import train_small_bundle

        small = {"teachers": teachers, "name": name or "small", "overwrite": overwrite, "resume": resume}
        trained = train_small_bundle(data, out, recipe, seed=seed, positive=positive, **small)
    else:
        train_one = train_robust_bundle if recipe.name == "robust" else train_bundle
        trained = train_one(data, out, recipe, name=name or "vgg16", split=split, **chosen, **heard)
    called = decide(trained.probabilities, trained.labels.positive, trained.threshold)
    click.echo(report_text(trained.truth, called))
    for key, metric in trained.metrics.items():
        click.echo(f"{key:<12} {metric.value:.3f}  [{metric.low:.3f}, {metric.high:.3f}]  of {metric.images}")
    click.echo(f"{out}: written")


def _check_options(
    recipe: str,
    *,
    teachers: tuple[str, ...],
    cv: str | None,
    only: int | None,
    excluded: tuple[str, ...],
    split: str | None,
    groups: Path | None,
) -> None:
    """Raise UsageError for options that the recipe, or a cross-validation, has no sense for."""
    if cv is not None and cv != "sources" and not (cv.isdecimal() and int(cv) > 1):
        raise UsageError(f"--cv takes a number of folds from 2, or 'sources'. Received: {cv!r}")
    if bool(teachers) != (recipe == "small" and cv is None):
        raise UsageError(
            "--teacher BUNDLE goes with --recipe small, and only there; --cv trains its own teachers",
            "mri-edge train --recipe small --teacher vgg16 --data DIR --out BUNDLE",
        )
    if recipe == "small":
        # An image that was to be left out must not be trained on in silence.
        unheard = {"--exclude": bool(excluded), "--groups": groups is not None, "--split": split is not None}
        for option in (name for name, given in unheard.items() if given):
            raise UsageError(f"recipe 'small' has no {option}: its teacher's split decides", "Train it without")
    if only is not None and not (cv is not None and recipe == "small"):
        raise UsageError("--fold goes with --recipe small --cv FOLDS, and only there", "Leave --fold out")
    if cv is not None and split is not None:
        raise UsageError("--cv tests every image in its turn: there is nothing to --split", "Leave --split out")
    if recipe == "robust" and split == "stratified":
        raise UsageError(
            "recipe 'robust' keeps near-duplicates of test images out of training, as a stratified split does not",
            "Leave --split out, or take --split grouped",
        )
