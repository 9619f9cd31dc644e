"""Search: the loop, its journal and its checkpoints."""

from cycleqd_jax.search.checkpoint import Checkpoints
from cycleqd_jax.search.journal import Journal
from cycleqd_jax.search.loop import evolve, individuals_within
from cycleqd_jax.search.transcripts import Transcripts

__all__ = ["Checkpoints", "Journal", "Transcripts", "evolve", "individuals_within"]
