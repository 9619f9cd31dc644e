"""Selection of parents from one archive, as QDax selectors."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Literal, cast

import jax
import jax.numpy as jnp
from qdax.core.containers.ga_repertoire import GARepertoire
from qdax.core.emitters.repertoire_selectors.selector import Selector

from cycleqd_jax.types import Array, Bool, Float, PRNGKeyArray

__all__ = ["DistinctSelector", "EliteSelector", "UniformSelector", "elite_weights", "extra_scores"]


def extra_scores(repertoire: GARepertoire) -> Mapping[str, Array]:
    """What is stored with the elites of a repertoire: ``scores``, all K of them, and ``id``."""
    return cast(Mapping[str, Array], repertoire.extra_scores)


def elite_weights(
    scores: Float[Array, "cell task"],
    occupied: Bool[Array, " cell"],
    alpha_low: float = 0.5,
    alpha_high: float = 0.8,
    span: Literal["paper", "reference"] = "paper",
) -> Float[Array, " cell"]:
    """The weights of the paper's elite sampling, γ_j = Π_k (α_low + norm(f_{j,k}) (α_high − α_low)), not normalised.

    norm is min–max normalisation over the elites of the archive. It is zero on a task on which all have the same score.

    Args:
        scores: all K scores of the elite in each cell.
        occupied: which cells have an elite; the others get weight zero.
        alpha_low: the smallest factor.
        alpha_high: the largest factor.
        span: ``"reference"`` makes the largest factor α_low + α_high, as the reference code does.
    """
    mask = occupied[:, None]
    low = jnp.min(jnp.where(mask, scores, jnp.inf), axis=0, keepdims=True)
    high = jnp.max(jnp.where(mask, scores, -jnp.inf), axis=0, keepdims=True)
    width = high - low
    norm = jnp.where(width > 0, (scores - low) / jnp.where(width > 0, width, 1.0), 0.0)
    extent = alpha_high if span == "reference" else alpha_high - alpha_low
    gamma = jnp.prod(alpha_low + norm * extent, axis=1)
    # With α_low = 0 an elite may have γ = 0. The smallest positive weight ranks it after all others and before empty cells.
    return jnp.where(occupied, jnp.maximum(gamma, jnp.finfo(gamma.dtype).tiny), 0.0)


class DistinctSelector(Selector[GARepertoire], abc.ABC):
    """Samples elites without replacement, with probabilities proportional to their weights. Subclasses define the weights."""

    @abc.abstractmethod
    def weights(self, repertoire: GARepertoire) -> Float[Array, " cell"]:
        """The weight of each cell, zero if it is empty."""

    def select(self, repertoire: GARepertoire, key: PRNGKeyArray, num_samples: int) -> GARepertoire:
        """Samples ``num_samples`` distinct elites. An archive with fewer elites repeats them in the sampled order.

        Args:
            repertoire: one archive with at least one elite.
            key: PRNG key; consumed.
            num_samples: number of elites.

        Returns:
            A repertoire of ``num_samples`` cells.
        """
        weights = self.weights(repertoire)
        # The top k of Gumbel-perturbed log weights is a sequence of k draws without replacement.
        noisy = jnp.where(weights > 0, jnp.log(weights) + jax.random.gumbel(key, weights.shape), -jnp.inf)
        order = jax.lax.top_k(noisy, min(num_samples, noisy.shape[0]))[1]
        elites = jnp.maximum(jnp.sum(weights > 0), 1)
        cells = order[jnp.arange(num_samples) % jnp.minimum(elites, order.shape[0])]
        return jax.tree.map(lambda leaf: leaf[cells], repertoire)


@dataclasses.dataclass(frozen=True)
class EliteSelector(DistinctSelector):
    """The paper's elite sampling: elites that are good at all tasks are the likeliest parents.

    The repertoire must have ``extra_scores["scores"]``, as :class:`~cycleqd_jax.algorithms.Archives` has.

    Attributes:
        alpha_low: α_low of :func:`elite_weights`.
        alpha_high: α_high of :func:`elite_weights`.
        span: see :func:`elite_weights`.
    """

    alpha_low: float = 0.5
    alpha_high: float = 0.8
    span: Literal["paper", "reference"] = "paper"

    def weights(self, repertoire: GARepertoire) -> Float[Array, " cell"]:
        """γ of each cell, zero if it is empty."""
        occupied = repertoire.fitnesses[:, 0] > -jnp.inf
        return elite_weights(extra_scores(repertoire)["scores"], occupied, self.alpha_low, self.alpha_high, self.span)


@dataclasses.dataclass(frozen=True)
class UniformSelector(DistinctSelector):
    """Uniform sampling of elites ("random sampling" in the paper's ablations)."""

    def weights(self, repertoire: GARepertoire) -> Float[Array, " cell"]:
        """One for each cell that has an elite, else zero."""
        return jnp.where(repertoire.fitnesses[:, 0] > -jnp.inf, 1.0, 0.0)
