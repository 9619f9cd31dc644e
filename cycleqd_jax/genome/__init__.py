"""Genome spaces: the genotypes of a search, their crossover and mutation, and their expression as weights."""

from cycleqd_jax.genome.coefficient_space import CoefficientGenome, CoefficientSpace
from cycleqd_jax.genome.dense_space import DenseSpace
from cycleqd_jax.genome.expert_space import ExpertGenome, ExpertSpace

__all__ = ["CoefficientGenome", "CoefficientSpace", "DenseSpace", "ExpertGenome", "ExpertSpace"]
