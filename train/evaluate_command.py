"""``mri-edge evaluate``: how good a bundle's artefact is on labelled scans."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from mri_edge.bundle import DEFAULT_MODEL, Bundle
from mri_edge.commands.options import ARTEFACT, ENGINE, PROVIDER, THREADS, VERBOSE, complete_models
from mri_edge.errors import UsageError
from mri_edge.files import make_folder, write_whole
from mri_edge.prediction import stdout_json

from .options import RECIPE, TRAINING, training_options

if TYPE_CHECKING:
    from .evaluate import Role

_NEEDED = ("sklearn", "scipy", "matplotlib")
_WIDE = 120  # columns where no terminal says how many

_EPILOG = """\b
Examples:
  mri-edge evaluate bundle/ --data scans/
  mri-edge evaluate bundle/ --artefact model.int8.tflite --data elsewhere/ --out report/
  mri-edge evaluate --data scans/ --json > evaluation.json
  mri-edge evaluate --cv 5 --recipe robust --data scans/ --out figures/

\b
Which images are scored (compared by SHA-256 with the bundle's split record):
  the folder that training used   its test images
  other images                    all but those that were in training
  --role all                      every image, which the report says

How to train (--recipe to --overwrite) goes with --cv.
"""


@click.command(epilog=_EPILOG)
@click.argument(
    "model", metavar="[BUNDLE]", default=DEFAULT_MODEL, envvar="MRI_EDGE_MODEL", shell_complete=complete_models
)
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="Folder with one folder of pictures a class."
)
@click.option("--role", type=click.Choice(["test", "all"]), help="Which images; without it, see below.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for evaluation.json and evaluation.html.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of tables.")
@click.option(
    "--cv",
    metavar="FOLDS",
    help="Score a recipe in place of a model, by cross-validation that keeps near-duplicates together "
    "('sources': leaves out one source at a time); crossval.json goes to --out.",
)
@RECIPE
@training_options
@ARTEFACT
@ENGINE
@PROVIDER
@THREADS
@VERBOSE
@click.pass_context
def evaluate(
    ctx: click.Context,
    model: str,
    data: Path,
    role: Role | None,
    out: Path | None,
    as_json: bool,
    cv: str | None,
    recipe_name: str,
    artefact: str | None,
    engine: str | None,
    provider: str,
    threads: int | None,
    **training: Any,
) -> int:
    """Score a model on labelled scans: figures with intervals, mistakes by file.

    At the threshold of its manifest. Any artefact in any engine; model.keras runs in Keras, which
    the others do not need. A scan that cannot be read is reported, the others are scored, and the
    exit code is 1. Without BUNDLE: the embedded model.

    Research use only: not a medical device.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(
            f"evaluation needs packages that are not installed: {', '.join(missing)}",
            "pip install 'mri-edge[evaluate]'",
        )
    if cv is not None:
        if out is None:
            raise UsageError("--cv writes its figures to a folder", "Name it with --out")
        from .command import train

        ctx.invoke(train, data=data, out=out, recipe_name=recipe_name, cv=cv, **training)
        return 0
    for name in ("recipe_name", *TRAINING):
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = next(one.opts[0] for one in ctx.command.params if one.name == name)
            raise UsageError(f"{option} says how to train, and a model is trained already", "It goes with --cv")
    import json

    from mri_edge.progress import track

    from .evaluate import evaluate as score

    bundle = Bundle.open(model)
    if out is not None:
        make_folder(out)  # before the work, not after it
    record = score(
        bundle, data, role=role, track=track, artefact=artefact, engine=engine, provider=provider, threads=threads
    )
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if out is not None:
        from .evaluation_report import evaluation_page

        write_whole(out / "evaluation.json", text)
        write_whole(out / "evaluation.html", evaluation_page(record))
    for one in record["unreadable"]:
        click.echo(f"mri-edge: {one['error']}", err=True)
    for warning in record["warnings"]:
        click.echo(f"mri-edge: warning: {warning}", err=True)
    if as_json:
        click.echo(stdout_json(record, indent=1))
    else:
        from rich.console import Console

        from .evaluation_report import print_evaluation

        console = Console(markup=False, emoji=False)  # names of files and folders are text, brackets and all
        if not console.is_terminal:
            console.width = _WIDE
        print_evaluation(record, console)
    return 1 if record["unreadable"] else 0
