"""Merges of a run's experts without a search: by coefficients of experts and groups of layers, and by static methods."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax import operators
from cycleqd_jax.genome import CoefficientGenome, CoefficientSpace
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.devices.mirror import mirrored
from cycleqd_jax.types import AnyArray, Float, Params

__all__ = ["Merges", "express_coefficients", "host_space", "placed_space"]


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


class Merges:
    """The merges that are rows of the results table."""

    def __init__(self, context: Context) -> None:
        """Args:
        context: the context of the run.
        """  # noqa: D205
        self._context = context
        self.mirror = context.mirror
        if self.mirror is not None:
            self.mirror.register("merges", self)

    @mirrored("merges", makes=True)
    def uniform(self) -> Params:
        """The uniform merge of the experts. It is computed in one way, because genome spaces round differently."""
        count = len(self._context.models.experts)
        return express_coefficients(self._context, np.full((1, count), 1 / count, np.float32))

    @mirrored("merges", makes=True)
    def static(self, method: str) -> Params:
        """The experts merged by a static method, with random masks by the seed of the run."""
        models = self._context.models
        return operators.static_merge(method, models.base, models.experts, jax.random.key(self._context.config.seed))
