"""The keys of the genome space and of the search."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from cycleqd_jax.config.fields import field
from cycleqd_jax.config.racing import RacingConfig
from cycleqd_jax.types import MAX_CELLS

__all__ = ["GenomeConfig", "SearchConfig"]


@dataclasses.dataclass(frozen=True)
class GenomeConfig:
    """The genome space and the mutation.

    Attributes:
        space: ``expert`` (a genome is a set of coefficients over the experts) or ``dense`` (a genome is a task vector).
        rank: number of singular directions per matrix that mutation changes. Null uses all.
        method: decomposition of the matrices: ``svd`` (exact), ``gram`` (several times as fast, mixes the smallest directions)
            or ``randomized`` (only the leading ``rank`` directions); see ``operators.decompose``. LoRA adapters need none.
        mutation: ``svd``, ``gaussian`` (dense space only) or ``none``. SVD mutation uses the decomposition of the active expert
            in the expert space, as the reference code does, and that of the child in the dense space.
        strength: w_max of SVD mutation (null: the paper's 0.3), or σ of Gaussian mutation in the units of the weights.
        densify: whether to multiply out the update of a LoRA adapter where another expert changes the whole matrix (expert
            space). Without it such experts are an error.
        factor_dtype: dtype of the singular vectors of full experts (expert space; see ``ExpertSpace.from_experts``). Null uses
            bfloat16 for bfloat16 weights and float32 otherwise.
    """

    space: Literal["expert", "dense"] = "expert"
    rank: int | None = field(None, minimum=1)
    method: Literal["svd", "gram", "randomized"] = "svd"
    mutation: Literal["svd", "gaussian", "none"] = "svd"
    strength: float | None = field(None, minimum=0)
    densify: bool = False
    factor_dtype: Literal["float32", "bfloat16"] | None = None


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The search. The defaults are CycleQD's of the paper, except for the number of generations and the batch size.

    Attributes:
        generations: number of generations T; fewer where a budget ends the search.
        batch_size: number of children per generation (paper: 1). It is the population of CMA-ES, which needs at least 4.
        selection: selection of the parents: ``elite`` or ``uniform``.
        alpha_low: α_low of elite sampling.
        alpha_high: α_high of elite sampling.
        elite_span: interval of elite sampling: ``paper`` [α_low, α_high] or ``reference`` [α_low, α_low + α_high].
        mu: mean μ of the crossover weights.
        sigma: standard deviation σ of the crossover weights.
        bins: number of bins per archive axis.
        cells: number of cells per archive, for a centroidal Voronoi tessellation (CVT) instead of the grid. With five tasks a
            grid of 15 bins has 50,625 cells per archive. The figures still have ``bins`` per axis. Null is the grid.
        bounds: fixed ends of the archive axes as ``{task: [low, high]}``. Null uses 0.85 × the lowest and 1.15 × the highest
            score of the experts.
        method: the algorithm. ``cycleqd``; ``qd`` (one archive; quality is the average, the descriptors are the scores);
            ``dns`` (Dominated Novelty Search); and over merging coefficients ``random``, ``cmaes`` (CMA-ES) and ``nsga2``
            (NSGA-II). The last three need no singular directions: ``genome`` keys other than ``densify`` have no effect.
        steady: whether a child is inserted as soon as it has scores, and the next one is asked for at once, so that no worker
            waits for others (``cycleqd``, ``qd``). Which children are made then depends on the order in which evaluations end,
            which the journal records. The number of children is that of generations, and ``batch_size`` must be 1.
        budget: maximum number of evaluated individuals, the experts included. Null is no limit.
        budget_items: maximum number of problems that individuals are scored on, those of the experts included. A problem counts
            once for each individual. Null is no limit.
        groups: number of groups of neighbouring layers with coefficients of their own (``random``, ``cmaes``, ``nsga2``).
        low: smallest coefficient that is drawn (``random``, ``nsga2``).
        high: largest coefficient that is drawn (``random``, ``nsga2``).
        step: first step size σ of CMA-ES.
        population: number of members (``nsga2``, ``dns``).
        neighbours: number of nearest fitter individuals over which ``dns`` averages the distance.
        descriptors: what ``dns`` measures distances between: ``items`` (the scores of all train problems) or ``scores`` (the
            scores of the tasks).
        retries: number of further attempts to evaluate an individual after a sandbox or a server broke. The pauses before them
            are 1, 4, 16, … seconds.
        deadline: seconds for the evaluation of one individual. An individual that needs more is quarantined. Null is no limit.
        max_failures: the run stops after this many children in a row that failed because of a sandbox, memory or the deadline.
            They are not recorded. As many children in a row whose logits are not finite stop it too. Null is no limit.
        grace: seconds that running evaluations may take to end after SIGTERM or Ctrl-C, before they are cancelled. SIGTERM must
            reach this process alone: it would also end programs in the sandbox, which would then count as failed.
        racing: evaluates a child on a part of the train problems first, and stops where it is unlikely to enter an archive
            (``cycleqd``, ``qd``). Null evaluates every child on all train problems, as the paper does.
    """

    generations: int = field(60, minimum=1)
    batch_size: int = field(4, minimum=1)
    selection: Literal["elite", "uniform"] = "elite"
    alpha_low: float = field(0.5, minimum=0)
    alpha_high: float = field(0.8, minimum=0)
    elite_span: Literal["paper", "reference"] = "paper"
    mu: float = 1.0
    sigma: float = field(0.03, minimum=0)
    bins: int = field(15, minimum=1)
    cells: int | None = field(None, minimum=2, maximum=MAX_CELLS)
    bounds: dict[str, list[float]] | None = None
    method: Literal["cycleqd", "qd", "dns", "random", "cmaes", "nsga2"] = "cycleqd"
    steady: bool = False
    budget: int | None = field(None, minimum=1)
    budget_items: int | None = field(None, minimum=1)
    groups: int = field(1, minimum=1)
    low: float = 0.0
    high: float = 1.0
    step: float = field(0.2, above=0)
    population: int = field(32, minimum=2)
    neighbours: int = field(3, minimum=1)
    descriptors: Literal["items", "scores"] = "items"
    retries: int = field(3, minimum=0)
    deadline: float | None = field(None, above=0)
    max_failures: int | None = field(10, minimum=1)
    grace: float = field(0.0, minimum=0)
    racing: RacingConfig | None = None

    @property
    def coefficients(self) -> bool:
        """Whether the method searches merging coefficients."""
        return self.method in ("random", "cmaes", "nsga2")

    def together(self, population: int) -> int | None:
        """Number of groups of ``population`` children that can be evaluated at the same time; None is no limit."""
        return None if self.steady else math.ceil(self.batch_size / population)

    @property
    def members(self) -> int:
        """Number of members of the population that the method keeps; 0 if it keeps an archive or nothing."""
        return self.population if self.method in ("nsga2", "dns") else 0

    def least(self, experts: int) -> int:
        """Number of individuals that the experts and the first population need."""
        return max(experts + self.batch_size, self.members)
