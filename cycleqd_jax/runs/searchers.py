"""The algorithm of a config, and the grid of its archives."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.algorithms import (
    CMAES,
    NSGA2,
    CycleQD,
    DominatedNovelty,
    EliteSelector,
    PlainQD,
    RandomSearch,
    UniformSelector,
)
from cycleqd_jax.algorithms.cells import bin_edges, cvt_centroids, expert_bounds
from cycleqd_jax.config import RunConfig
from cycleqd_jax.files import load_json, write_json
from cycleqd_jax.runs.devices.groups import Space
from cycleqd_jax.schema import SCHEMA
from cycleqd_jax.search import Journal, Racing
from cycleqd_jax.types import InputError, Scores, Searcher

__all__ = ["grid_of", "make_searcher", "racing_of", "write_grid"]


def make_searcher(config: RunConfig, space: Space) -> Searcher:
    """The algorithm of a config.

    Args:
        config: the config of a run.
        space: the genome space of the run.
    """
    options, leaders = config.search, config.export.elites
    if options.method == "random":
        return RandomSearch(options.low, options.high, leaders)
    if options.method == "cmaes":
        return CMAES(options.batch_size, options.step, leaders)
    if options.method == "nsga2":
        return NSGA2(options.population, options.low, options.high, leaders=leaders)
    if options.method == "dns":
        return DominatedNovelty(space, options.population, options.descriptors, options.neighbours, options.mu, options.sigma)
    elite = EliteSelector(options.alpha_low, options.alpha_high, options.elite_span)
    bounds = options.bounds
    shared: dict[str, Any] = {
        "space": space,
        "bins": options.bins,
        "mu": options.mu,
        "sigma": options.sigma,
        "selector": elite if options.selection == "elite" else UniformSelector(),
        "bounds": None if bounds is None else tuple((bounds[t][0], bounds[t][1]) for t in config.task_names),
    }
    return CycleQD(**shared, cells=options.cells) if options.method == "cycleqd" else PlainQD(**shared)


def racing_of(config: RunConfig) -> Racing | None:
    """How the children of a run are raced; None if they are not."""
    found = config.search.racing
    if found is None:
        return None
    return Racing(found.first, found.least, found.confidence, config.search.budget_items)


def grid_of(config: RunConfig, scores: Scores) -> dict[str, Any]:
    """The grid of Algorithm 1, JSON-ready; see :func:`~cycleqd_jax.algorithms.cells.expert_bounds`.

    Args:
        config: the config of a run.
        scores: the scores of the experts, Float ``[K, task]``.
    """
    options, names = config.search, config.task_names
    bounds = expert_bounds(scores)
    if options.bounds is not None:
        bounds = np.asarray([options.bounds[name] for name in names], np.float32)
    edges = dict(zip(names, bin_edges(bounds, options.bins).tolist(), strict=True))
    ends = {name: [row[0], row[-1]] for name, row in edges.items()}
    grid = {"tasks": list(names), "bins": options.bins, "bounds": ends, "edges": edges}
    if options.cells is not None:
        grid["centroids"] = cvt_centroids(options.cells, len(names) - 1).tolist()
    return grid if options.method == "cycleqd" else {**grid, "method": options.method}


def write_grid(config: RunConfig, journal: Journal) -> None:
    """Writes the grid of Algorithm 1 from the scores of the experts, which the report uses for every method.

    Args:
        config: the config of the run.
        journal: the journal of the run; it has all experts.

    Raises:
        InputError: the run has children already, in cells of other centroids than this version computes.
        OSError: the disk refuses.
    """
    names, file = config.expert_names, config.folder / "grid.json"
    scores = np.asarray([journal.scores(k, config.task_names) for k in range(len(names))], np.float32)
    grid = grid_of(config, scores)
    if "centroids" in grid and len(journal) > len(names) and file.exists():
        before = _centroids_in(file)
        if before is not None and before != grid["centroids"]:
            raise InputError(
                f"expected the centroids of the cells in {file}, with which the run began, got others from scikit-learn "
                f"{importlib.metadata.version('scikit-learn')} and QDax {importlib.metadata.version('qdax')}; install the "
                "versions in inputs.json, or choose another output"
            )
    write_json(file, {"schema": SCHEMA, **grid})


def _centroids_in(file: Path) -> Any:
    """The centroids in a grid; None where it is damaged, and is written anew."""
    try:
        tree = load_json(file)
    except ValueError:
        return None
    return tree.get("centroids") if isinstance(tree, dict) else None
