"""Merges of model folders as mergekit's configs describe them, tensor by tensor."""

from cycleqd_jax.merging.recipe import METHODS, Recipe, load_recipe
from cycleqd_jax.merging.write import merge_models

__all__ = ["METHODS", "Recipe", "load_recipe", "merge_models"]
