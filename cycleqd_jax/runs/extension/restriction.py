"""The genomes of a run in the space of a run with further experts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from cycleqd_jax.genome import ExpertGenome, ExpertSpace
from cycleqd_jax.runs.devices.groups import Space
from cycleqd_jax.search import Journal, tree_digest
from cycleqd_jax.types import Genome, InputError

__all__ = ["Restriction"]


class Restriction:
    """The part of a genome that the space of fewer experts has."""

    def __init__(self, space: Space, experts: list[int], journal: Journal) -> None:
        """Finds the leaves of the smaller space.

        Args:
            space: the space of all experts.
            experts: the indices of those of the smaller space, in its order.
            journal: the journal of the smaller space; individual 0 is its first expert.

        Raises:
            InputError: the genomes of the smaller space have other shapes.
        """
        self._experts = np.asarray(experts)
        choices: list[frozenset[str]] = [frozenset()]
        if isinstance(space, ExpertSpace):
            changed = {path: np.asarray(basis.s)[self._experts].any() for path, basis in space.bases.items()}
            choices = [frozenset(path for path, found in changed.items() if found), frozenset(changed)]
        expected = journal[0].digest
        for paths in choices:
            self._paths = paths
            if expected in (None, self(space.expert(experts[0]))):
                return
        raise InputError(
            f"expected genomes of the shapes that those in {journal.path} have, got others; give a new expert that changes "
            "matrices in the way of the others, an adapter of at most their rank or a whole model, and the other experts as "
            "they were"
        )

    def __call__(self, genome: Genome) -> str:
        """The digest of the part."""
        if not isinstance(genome, ExpertGenome):  # a whole task vector
            return tree_digest(genome)
        mutation = {path: jnp.asarray(d)[self._experts] for path, d in genome.mutation.items() if path in self._paths}
        return tree_digest(ExpertGenome(jnp.asarray(genome.mixing)[self._experts], mutation))
