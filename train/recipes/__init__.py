"""Recipes: each decides everything that a training does."""
