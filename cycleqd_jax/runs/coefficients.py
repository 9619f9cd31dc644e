"""Merges of a run's experts that coefficients give, one for each expert, or one for each expert and group of layers."""

from __future__ import annotations

import jax.numpy as jnp

from cycleqd_jax.genome import CoefficientGenome, CoefficientSpace
from cycleqd_jax.runs.context import Context
from cycleqd_jax.types import AnyArray, Float, Params

__all__ = ["express_coefficients", "host_space", "placed_space"]


def host_space(context: Context, groups: int) -> CoefficientSpace:
    """The experts of a run where they were loaded.

    Args:
        context: the context of the run.
        groups: the number of groups of layers.
    """
    models = context.models
    return CoefficientSpace.from_experts(models.base, models.experts, groups=groups, densify=context.config.genome.densify)


def placed_space(context: Context, groups: int) -> CoefficientSpace:
    """The experts of a run on the first group of devices; weights that are already there are not copied."""
    placed = context.groups[0].place_space(host_space(context, groups), context.models.config)
    assert isinstance(placed, CoefficientSpace)
    return placed


def express_coefficients(context: Context, coefficients: Float[AnyArray, "group expert"]) -> Params:
    """The weights of a merge, on the first group of devices."""
    space = placed_space(context, len(coefficients))
    return context.groups[0].express(space.express)(CoefficientGenome(jnp.asarray(coefficients, jnp.float32)))
