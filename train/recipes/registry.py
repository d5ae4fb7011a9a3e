"""List all recipes by name, as ``--recipe`` takes it."""

from __future__ import annotations

from mri_edge.errors import UsageError

from .base import RecipeSpec
from .distilled import SMALL
from .lite import LITE
from .reference import REFERENCE
from .robust import ROBUST

RECIPES: dict[str, RecipeSpec] = {recipe.name: recipe for recipe in (REFERENCE, ROBUST, LITE, SMALL)}


def find_recipe(name: str) -> RecipeSpec:
    """Return a recipe by its name. Raises UsageError that lists the known names."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}", f"Recipes: {', '.join(RECIPES)}")
    return RECIPES[name]
