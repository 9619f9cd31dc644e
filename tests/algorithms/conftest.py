"""Algorithm 1 of the paper in plain Python, with dicts, loops and exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from .all_searchers import made, name, spaces

__all__ = ["PlainArchives", "made", "name", "spaces"]


class PlainArchives:
    """A_1 … A_K as dicts from a cell (a tuple of bins) to an individual ``{"id", "genome", "scores"}``."""

    def __init__(self, bounds, bins):
        self.bins = bins
        self.edges = []
        for low, high in bounds:
            low, high = Fraction(float(low)), Fraction(float(high))
            # float32, as the scores: a score on an edge equals it
            self.edges.append([float(np.float32(float(low + (high - low) * i / bins))) for i in range(bins + 1)])
        self.archives = [{} for _ in bounds]

    def bin(self, task, score):
        for i in reversed(range(1, self.bins)):  # the first and last bin take scores outside
            if score >= self.edges[task][i]:
                return i
        return 0

    def cell(self, task, scores):
        return tuple(self.bin(j, f) for j, f in enumerate(scores) if j != task)

    def insert(self, individual):
        if not all(math.isfinite(f) for f in individual["scores"]):
            return
        for k, archive in enumerate(self.archives):
            cell = self.cell(k, individual["scores"])
            if cell not in archive or individual["scores"][k] > archive[cell]["scores"][k]:
                archive[cell] = individual


def paper_gammas(members, low, high, span):
    """γ_j = Π_k (α_low + norm(f_jk) (α_high − α_low)), min–max normalised over the members of the archive."""
    gammas = []
    for member in members:
        gamma = 1.0
        for k, f in enumerate(member["scores"]):
            column = [other["scores"][k] for other in members]
            width = max(column) - min(column)
            norm = (f - min(column)) / width if width > 0 else 0.0
            gamma *= low + norm * (high if span == "reference" else high - low)
        gammas.append(gamma)
    return gammas


def compare(archives, plain, case=None):
    """Checks that every cell of the QDax archives has the same individual as the plain archives, in every leaf."""
    r = archives.repertoires
    tasks = len(plain.archives)
    leaves = {
        "fitness": r.fitnesses,
        "descriptors": r.descriptors,
        "scores": r.extra_scores["scores"],
        "id": r.extra_scores["id"],
        "genome": r.genotypes,
        "centroids": r.centroids,
    }
    leaves = {name: np.asarray(leaf if case is None else leaf[case]) for name, leaf in leaves.items()}
    for k, archive in enumerate(plain.archives):
        found = {}
        for c in np.flatnonzero(leaves["fitness"][k, :, 0] > -np.inf):
            others = [j for j in range(tasks) if j != k]
            cell = tuple(plain.bin(j, float(f)) for j, f in zip(others, leaves["centroids"][k, c], strict=True))
            assert cell not in found
            found[cell] = c
        assert set(found) == set(archive)
        for cell, individual in archive.items():
            c, scores = found[cell], individual["scores"]
            assert leaves["id"][k, c] == individual["id"]
            assert leaves["fitness"][k, c, 0] == scores[k]
            assert leaves["scores"][k, c].tolist() == scores
            assert leaves["descriptors"][k, c].tolist() == [f for j, f in enumerate(scores) if j != k]
            assert leaves["genome"][k, c].tolist() == individual["genome"]


class Plain:
    """The helpers of this file, for the tests."""

    Archives = PlainArchives
    gammas = staticmethod(paper_gammas)
    compare = staticmethod(compare)


@pytest.fixture(scope="session")
def plain():
    return Plain
