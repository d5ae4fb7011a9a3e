"""``mri-edge train``: from a folder of scans to a bundle with a Keras model."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mri_edge.authoring.intervals import with_interval
from mri_edge.errors import UsageError
from mri_edge.inference.prediction import decide

from .options import DEFAULT_RECIPE, RECIPE, training_options

if TYPE_CHECKING:
    from mri_edge.train.pipeline import TrainedBundle
    from mri_edge.train.recipes.base import RecipeSpec

_EPILOG = """\b
Examples:
  mri-edge train scans/
  mri-edge train scans/ --out bundles/mine
  mri-edge train collections/ --recipe robust
  mri-edge train collections/ --recipe small --teacher runs/vgg16
  mri-edge train collections/ --recipe robust --cv 5 --out figures/

\b
Without --out the bundle goes to runs/vgg16 (runs/small), or the next free number: runs/vgg16-2.
Then: mri-edge export --quantize
"""
_INTERRUPTED = 130  # 128 + SIGINT, the convention of shells


@click.command(epilog=_EPILOG)
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="The same as DIR: holds one folder of pictures a class.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the new bundle.  [default: runs/vgg16, or the next free]"
)
@RECIPE
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="BUNDLE",
    help="Recipe 'small': whose answers it learns, a bundle or an embedded model. May be repeated: their mean.",
)
@click.option("--name", help="Name of the model in the manifest.  [default: that of the bundle's folder]")
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
    folder: Path | None,
    data: Path | None,
    out: Path | None,
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
) -> int:
    """Train a model from a folder of scans and write it as a bundle.

    DIR holds one folder a class, or folders of such folders. The classification report is
    printed; progress goes to stderr, a line an epoch.
    """
    from mri_edge.train.recipes.registry import find_recipe

    recipe = find_recipe(recipe_name)
    if epochs:
        recipe = recipe.with_epochs(epochs)
    scans = _check_given(recipe, folder, data, out, teachers=teachers, cv=cv)
    _check_options(
        recipe,
        teachers=teachers,
        cv=cv,
        only=only,
        excluded=excluded,
        split=split,
        groups=groups,
        numbered=out is None,
        overwrite=overwrite,
    )
    chosen = {
        "seed": seed,
        "backbone_weights": backbone_weights,
        "positive": positive,
        "excluded": excluded,
        "groups": groups,
        "overwrite": overwrite,
        "resume": resume,
        "say": _say,
    }
    if cv is not None:
        assert out is not None  # noqa: S101 (_check_given requires it with --cv)
        return _cross_validate(scans, out, recipe, None if cv == "sources" else int(cv), chosen | {"only": only})
    return _train(scans, out, recipe, name, chosen | {"teachers": teachers, "split": split})


def _say(text: str) -> None:
    click.echo(text, err=True)


def _train(scans: Path, out: Path | None, recipe: RecipeSpec, name: str | None, chosen: dict[str, Any]) -> int:
    """Train a bundle at ``out``, or in ``runs/`` if that is None; print its metrics and the next command."""
    from mri_edge.authoring.runs import as_typed, remember_data
    from mri_edge.authoring.writer import check_target
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.train.loops.checkpoint import claimed, claimed_run

    claim: AbstractContextManager[Path]
    if out is None:
        claim = claimed_run(recipe.run_name, resume=chosen["resume"])
    else:
        check_target(out, overwrite=chosen["overwrite"])
        claim = claimed(out)
    with claim as place:
        if out is None:
            _say(f"the bundle goes to {place}")

        def run() -> TrainedBundle:
            from mri_edge.train.loops.keras import load_keras

            load_keras()
            from mri_edge.train.pipeline import train_bundle

            return train_bundle(scans, place, recipe, name=name or place.absolute().name, **chosen)

        trained = _until_interrupted(run, place)
    if trained is None:
        return _INTERRUPTED
    from mri_edge.train.evaluation.metrics import report_text

    called = decide(trained.probabilities, trained.labels.positive, trained.threshold)
    click.echo(report_text(trained.truth, called))
    for key, metric in trained.metrics.items():
        click.echo(f"{key:<17} {with_interval(metric.value, metric.low, metric.high)}  of {metric.images}")
    click.echo(f"{place}: written")
    bundle = Bundle.open(as_typed(place))
    remember_data(bundle, scans)
    _say(f"report: {_report_of(place)}")
    _say(f"next: mri-edge export{'' if out is None else f' {shlex.quote(as_typed(place))}'} --quantize")
    return 0


def _cross_validate(scans: Path, out: Path, recipe: RecipeSpec, folds: int | None, chosen: dict[str, Any]) -> int:
    """Cross-validate a recipe; print the figures, which are also written to ``out``."""
    import json

    def run() -> dict[str, Any]:
        from mri_edge.train.loops.keras import load_keras

        load_keras()
        from mri_edge.train.crossval import cross_validate

        return cross_validate(scans, out, recipe, folds=folds, **chosen)

    if recipe.needs_teacher:  # continues with what --out holds, without --resume
        figures = _until_interrupted(run, None)
    else:
        from mri_edge.train.loops.checkpoint import claimed

        with claimed(out):
            figures = _until_interrupted(run, out)
    if figures is None:
        return _INTERRUPTED
    compared = ("student_minus_teacher", "threshold", "student_minus_teacher_at_threshold_of_other_folds")
    shown = ("folds_scored", "pooled", *compared, "stress")
    click.echo(json.dumps({key: figures[key] for key in shown if key in figures}, indent=1))
    _say(f"report: {out / 'crossval.json'}")
    _say(f"next, for the model itself: {shlex.join(['mri-edge', 'train', str(scans), '--recipe', recipe.name])}")
    return 0


def _until_interrupted(run: Callable[[], Any], place: Path | None) -> Any:
    """Return the result of ``run``; after Ctrl-C, print how to continue and return None.

    ``place`` is the result whose work folder has the state; None if repeating the same command continues.
    """
    from mri_edge.storage.staging import use_temporary_folder
    from mri_edge.train.loops.checkpoint import has_state

    try:
        with use_temporary_folder("train"):
            return run()
    except KeyboardInterrupt:
        click.echo(err=True)  # below the terminal's ^C
        if place is not None and not has_state(place):
            _say("mri-edge: interrupted before anything was kept. To begin anew:")
            _say(f"  {_command_line()}")
        else:
            _say("mri-edge: interrupted; what is done is kept. To go on:")
            _say(f"  {_command_line(*(() if place is None else ('--resume',)), out=place)}")
        return None


def _command_line(*more: str, out: Path | None = None) -> str:
    """Return the current command as one would type it, with further options that it lacks."""
    given = sys.argv[1:]
    added = [option for option in more if option not in given]
    if out is not None and not any(argument == "--out" or argument.startswith("--out=") for argument in given):
        added = ["--out", str(out), *added]
    return shlex.join(["mri-edge", *given, *added])


def _report_of(place: Path) -> Path:
    from mri_edge.authoring.card import CARD

    report = place / "report" / "index.html"
    return report if report.is_file() else place / CARD


def _check_given(
    recipe: RecipeSpec,
    folder: Path | None,
    data: Path | None,
    out: Path | None,
    *,
    teachers: tuple[str, ...],
    cv: str | None,
) -> Path:
    """Return the data folder. Raises UsageError that names everything missing and shows a complete command."""
    if folder is not None and data is not None and folder != data:
        raise UsageError(f"two data folders are named: {folder}, and with --data {data}", "Name one")
    scans = folder or data
    missing, example = [], ["mri-edge train", str(scans or "scans/")]
    if scans is None:
        missing.append("DIR, the folder that holds one folder of pictures a class")
    if recipe.name != DEFAULT_RECIPE:
        example.append(f"--recipe {recipe.name}")
    if recipe.needs_teacher and cv is None:
        if not teachers:
            missing.append("--teacher BUNDLE, whose answers the small network learns")
        example.append(f"--teacher {teachers[0] if teachers else 'vgg16'}")
    if cv is not None:
        if out is None:
            missing.append("--out DIR, the folder for the figures of --cv")
        example.append(f"--cv {cv} --out {out or 'figures/'}")
    if missing or scans is None:
        raise UsageError(f"missing: {'; '.join(missing)}", " ".join(["For example:", *example]))
    return scans


def _check_options(
    recipe: RecipeSpec,
    *,
    teachers: tuple[str, ...],
    cv: str | None,
    only: int | None,
    excluded: tuple[str, ...],
    split: str | None,
    groups: Path | None,
    numbered: bool,
    overwrite: bool,
) -> None:
    """Raise UsageError for options that do not apply to the recipe or to a cross-validation."""
    if cv is not None and cv != "sources" and not (cv.isdecimal() and int(cv) > 1):
        raise UsageError(f"--cv takes a number of folds from 2, or 'sources'. Received: {cv!r}")
    if teachers and (not recipe.needs_teacher or cv is not None):
        raise UsageError(
            "--teacher BUNDLE goes with --recipe small, and only there; --cv trains its own teachers",
            "mri-edge train scans/ --recipe small --teacher vgg16",
        )
    if recipe.needs_teacher:
        # Do not silently train on an image that the user wants to leave out.
        unsupported = {"--exclude": bool(excluded), "--groups": groups is not None, "--split": split is not None}
        for option in (name for name, given in unsupported.items() if given):
            raise UsageError(f"recipe {recipe.name!r} has no {option}: its teacher's split decides", "Train it without")
    if only is not None and not (cv is not None and recipe.needs_teacher):
        raise UsageError("--fold goes with --recipe small --cv FOLDS, and only there", "Leave --fold out")
    if cv is not None and split is not None:
        raise UsageError("--cv tests every image in its turn: there is nothing to --split", "Leave --split out")
    if split is not None and split not in recipe.split.names:
        raise UsageError(
            f"recipe {recipe.name!r} keeps near-duplicates of test images out of training, as a {split} split does not",
            "Leave --split out, or take --split grouped",
        )
    if numbered and overwrite:
        raise UsageError(
            "--overwrite replaces what stands at --out; without --out a new folder of runs/ is taken",
            "Name it with --out, or leave --overwrite out",
        )
