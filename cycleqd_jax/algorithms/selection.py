"""Parent selection from one archive, as QDax selectors."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from qdax.core.containers.mapelites_repertoire import MapElitesRepertoire
from qdax.core.emitters.repertoire_selectors.selector import Selector

from cycleqd_jax.types import Array, Bool, Float, PRNGKeyArray

__all__ = ["DistinctSelector", "EliteSelector", "UniformSelector", "elite_weights"]


def elite_weights(
    scores: Float[Array, "cell task"],
    occupied: Bool[Array, " cell"],
    alpha_low: float = 0.5,
    alpha_high: float = 0.8,
    span: Literal["paper", "reference"] = "paper",
) -> Float[Array, " cell"]:
    """γ_j = Π_k (α_low + norm(f_{j,k}) (α_high − α_low)): the paper's elite sampling, not yet divided by Σ γ.

    norm is min–max over the members of the archive; on a task where all score alike it is zero for all.

    Args:
        scores: all K scores of the individual in each cell.
        occupied: which cells hold one; the others have weight zero.
        alpha_low: lower end of every factor.
        alpha_high: upper end of every factor.
        span: ``"reference"`` spans [α_low, α_low + α_high], as the reference code does.
    """
    mask = occupied[:, None]
    low = jnp.min(jnp.where(mask, scores, jnp.inf), axis=0)
    high = jnp.max(jnp.where(mask, scores, -jnp.inf), axis=0)
    width = high - low
    norm = jnp.where(width > 0, (scores - low) / jnp.where(width > 0, width, 1.0), 0.0)
    extent = alpha_high if span == "reference" else alpha_high - alpha_low
    gamma = jnp.prod(alpha_low + norm * extent, axis=1)
    # with α_low = 0 a member may have γ = 0: it comes after all others, but before an empty cell
    return jnp.where(occupied, jnp.maximum(gamma, jnp.finfo(gamma.dtype).tiny), 0.0)


class DistinctSelector(Selector[MapElitesRepertoire], abc.ABC):
    """Draws elites without replacement, with probabilities in proportion to weights."""

    @abc.abstractmethod
    def weights(self, repertoire: MapElitesRepertoire) -> Float[Array, " cell"]:
        """Weight of each cell, zero where it is empty."""

    def select(self, repertoire: MapElitesRepertoire, key: PRNGKeyArray, num_samples: int) -> MapElitesRepertoire:
        """Draws ``num_samples`` distinct elites; only an archive with fewer members gives some of them again.

        Args:
            repertoire: of one archive, with at least one member.
            key: consumed.
            num_samples: how many.

        Returns:
            A repertoire of ``num_samples`` cells.
        """
        weights = self.weights(repertoire)
        # Gumbel top-k is sampling without replacement, one draw after another
        noisy = jnp.where(weights > 0, jnp.log(weights) + jax.random.gumbel(key, weights.shape), -jnp.inf)
        order = jax.lax.top_k(noisy, min(num_samples, noisy.shape[0]))[1]
        members = jnp.maximum(jnp.sum(weights > 0), 1)
        cells = order[jnp.arange(num_samples) % jnp.minimum(members, order.shape[0])]
        return jax.tree.map(lambda leaf: leaf[cells], repertoire)


@dataclasses.dataclass(frozen=True)
class EliteSelector(DistinctSelector):
    """The paper's elite sampling: individuals good at all tasks are likelier parents. Wants ``extra_scores["scores"]``.

    Attributes:
        alpha_low: α_low.
        alpha_high: α_high.
        span: see :func:`elite_weights`.
    """

    alpha_low: float = 0.5
    alpha_high: float = 0.8
    span: Literal["paper", "reference"] = "paper"

    def weights(self, repertoire: MapElitesRepertoire) -> Float[Array, " cell"]:
        """γ of each cell."""
        occupied = repertoire.fitnesses[:, 0] > -jnp.inf
        kept: Any = repertoire.extra_scores
        return elite_weights(kept["scores"], occupied, self.alpha_low, self.alpha_high, self.span)


@dataclasses.dataclass(frozen=True)
class UniformSelector(DistinctSelector):
    """Every elite is as likely a parent as any other ("random sampling" in the paper's ablations)."""

    def weights(self, repertoire: MapElitesRepertoire) -> Float[Array, " cell"]:
        """One for each occupied cell."""
        return jnp.where(repertoire.fitnesses[:, 0] > -jnp.inf, 1.0, 0.0)
