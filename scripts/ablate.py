"""Cross-validate a recipe with one part changed, to measure what the part contributes.

    python -m scripts.ablate no-lesions --data DIR --out FOLDER --cv sources --seed 1

FOLDER/crossval.json is a record as a cross-validation writes it, with the key ``change``. ``make evidence`` compares it
with the record of the unchanged recipe for the same seed. Repeating the command continues.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from mri_edge.authoring.quiet import load_keras
from mri_edge.storage.atomic import atomic_write
from mri_edge.train.evaluation.crossval_record import to_json
from mri_edge.train.recipes.base import FineTuning, RecipeSpec
from mri_edge.train.recipes.registry import find_recipe


@dataclass(frozen=True)
class Change:
    """How the evidence page names a change, and the fields of ``ScanViews`` or ``FineTuning`` that it replaces."""

    name: str
    views: dict[str, Any]
    schedule: dict[str, Any]

    def apply(self, recipe: RecipeSpec) -> RecipeSpec:
        """Return the recipe with the change. Raises ClickException if it would change nothing."""
        if not isinstance(recipe.schedule, FineTuning):
            raise click.ClickException(f"recipe {recipe.name!r} is not fine-tuned on views of scans")
        changed = replace(
            recipe,
            transforms=replace(recipe.scan_views, **self.views),
            schedule=replace(recipe.schedule, **self.schedule),
        )
        if changed == recipe:
            raise click.ClickException(f"recipe {recipe.name!r} has no such part: {self.name}")
        return changed


CHANGES = {
    "no-lesions": Change("no drawn lesions", {"lesion_probability": 0.0}, {}),
    "no-gray-matching": Change("no matched gray levels", {"histogram_probability": 0.0}, {}),
    "no-filters": Change("no random filters", {"filter_probability": 0.0}, {}),
    "no-initial-share": Change("no share of the initial weights", {}, {"initial_share": 0.0}),
    # With one source to train on, as in --cv sources, this changes nothing.
    "proportional-sources": Change("sources in proportion to their images", {"source_exponent": 1.0}, {}),
}


def _folds(_context: click.Context, _parameter: click.Parameter, text: str) -> int | None:
    if text != "sources" and not (text.isdecimal() and int(text) > 1):
        raise click.BadParameter(f"takes a number of folds from 2, or 'sources'. Received: {text!r}")
    return None if text == "sources" else int(text)


@click.command()
@click.argument("change", type=click.Choice(list(CHANGES)))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--recipe", default="lite", show_default=True)
@click.option("--backbone-weights", default="auto", show_default=True, help="As for `mri-edge train`.")
@click.option("--cv", default="sources", show_default=True, help="A number of folds, or 'sources'.", callback=_folds)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
def main(change: str, data: Path, out: Path, recipe: str, backbone_weights: str, cv: int | None, seed: int) -> None:
    """Cross-validate a recipe with one part changed."""
    load_keras("train")
    from mri_edge.train.crossval import cross_validate

    part = CHANGES[change]
    record = cross_validate(
        data,
        out,
        part.apply(find_recipe(recipe)),
        folds=cv,
        seed=seed,
        backbone_weights=backbone_weights,
        say=lambda text: click.echo(text, err=True),
    )
    weights = "" if backbone_weights == "auto" else f" --backbone-weights {backbone_weights}"
    command = (
        f"python -m scripts.ablate {change} --data PATH --out PATH --recipe {recipe}{weights} --cv {cv or 'sources'} "
        f"--seed {seed}"
    )
    record = {"change": part.name, **record, "creation": record["creation"] | {"command": command}}
    atomic_write(out / "crossval.json", to_json(record))
    click.echo(out / "crossval.json")


if __name__ == "__main__":
    main()
